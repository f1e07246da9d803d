import math

import torch
from torch.nn import functional as F

from protection.audit.fine_tuning import fine_tune
from protection.batches import EpochStream, read_batch
from protection.sophon.adversary import Strategy
from tests.conftest import random_images, tiny_classifier


def strategy(**changes: object) -> Strategy:
    values = {"method": "all_layers", "optimizer": "sgd", "finetune_lr": 0.05}
    return Strategy(**{**values, "batch_size": 16, "weight_decay": 0.0, **changes})


def test_fine_tuning_is_an_ordinary_training_loop() -> None:
    images, test = random_images(40), random_images(30, seed=5)
    model, plain = tiny_classifier(), tiny_classifier().train()
    list(fine_tune(model, strategy(), images, test, epochs=2, seed=3))
    optimizer, stream = (
        torch.optim.SGD(plain.parameters(), lr=0.05),
        EpochStream(40, 3, "fine-tuning"),
    )
    for step in range(
        6
    ):  # 40 images are 3 batches of 16: the last one reads on into the next epoch
        batch = read_batch(images, stream.at(step * 16, 16), device=torch.device("cpu"))
        optimizer.zero_grad()
        F.cross_entropy(plain(batch.images), batch.labels).backward()
        optimizer.step()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_fine_tuning_learns_and_head_only_leaves_the_rest() -> None:
    images, test = random_images(60), random_images(30, seed=5)
    model = tiny_classifier()
    metrics = list(fine_tune(model, strategy(), images, test, epochs=12, seed=0))
    assert metrics[-1].test_accuracy > 0.8
    frozen = tiny_classifier()
    conv = frozen.network.conv.weight.clone()
    list(fine_tune(frozen, strategy(method="redrawn_head_only"), images, test, epochs=1, seed=0))
    assert torch.equal(frozen.network.conv.weight, conv)


def test_a_diverged_adversary_is_shown_not_hidden() -> None:
    images = random_images(40)
    curve = list(
        fine_tune(tiny_classifier(), strategy(finetune_lr=3e38), images, images, epochs=2, seed=0)
    )
    assert not math.isfinite(curve[-1].loss)
    assert 0 <= curve[-1].test_accuracy <= 1
