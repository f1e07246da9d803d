"""The classifier's path as it was measured once: pre-training, protection and an attack.

`pytest --regenerate-golden` writes what is measured now in its place; the diff is to be reviewed.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from protection.audit.attacks import Means
from protection.audit.fine_tuning import fine_tune
from protection.models import Classifier
from protection.sophon.algorithm import SophonState, protect, start
from protection.training import TrainingConfig, start_training, train
from tests.conftest import random_images, tiny_classifier
from tests.protection.audit.attacking import attack
from tests.protection.sophon.test_algorithm import a_config, domains

GOLDEN = Path(__file__).parent.parent.parent / "golden" / "classifier.json"
TRAINING = TrainingConfig(
    epochs=3,
    batch_size=20,
    learning_rate=0.05,
    random_crop_flip=True,
    shards=2,
    label_smoothing=0.1,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Their number decides how sums round."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def lengths(model: Classifier) -> dict[str, float]:
    return {name: tensor.double().norm().item() for name, tensor in model.state_dict().items()}


def pretrained() -> tuple[SophonState, dict[str, object]]:
    state = start_training(tiny_classifier(dropout=0.2), TRAINING)
    epochs = train(state, random_images(60, seed=1), random_images(30, seed=4), config=TRAINING)
    curve = [metrics._asdict() for metrics in epochs]
    return start(state.model, a_config()), {"epochs": curve, "weights": lengths(state.model)}


def measured() -> dict[str, object]:
    state, training = pretrained()
    rounds = [metrics._asdict() for metrics in protect(state, domains(), config=a_config())]
    protection = {"rounds": rounds, "weights": lengths(state.model)}
    some = attack(
        method="lora",
        optimizer="adam",
        finetune_lr=0.01,
        label_smoothing=0.1,
        augmentation="mixup",
        preparation="heal_original",
        preparation_epochs=1,
    )
    epochs = fine_tune(
        state.model,
        some,
        random_images(40, seed=2),
        random_images(40, seed=5),
        epochs=3,
        seed=3,
        means=Means(original=random_images(60, seed=1)),
    )
    curve = [metrics._asdict() for metrics in epochs]
    return {
        "training": training,
        "protection": protection,
        "attack": {"epochs": curve, "weights": lengths(state.model)},
    }


def test_classifiers_are_trained_protected_and_attacked_as_they_were(
    pytestconfig: pytest.Config,
) -> None:
    found = measured()
    if pytestconfig.getoption("--regenerate-golden"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    golden = json.loads(GOLDEN.read_text())
    assert found.keys() == golden.keys()
    for part, expected in golden.items():
        # Other processors round sums of float32 otherwise, and Adam enlarges it.
        assert flat(found[part]) == pytest.approx(flat(expected), rel=1e-4, abs=1e-6), part


def flat(value: object, path: str = "") -> dict[str, float]:
    """Every number in ``value`` by the path to it."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        parts = [flat(part, f"{path}/{name}") for name, part in items]
        return {name: number for part in parts for name, number in part.items()}
    assert isinstance(value, int | float)
    return {path: value}
