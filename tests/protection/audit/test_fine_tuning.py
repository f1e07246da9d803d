"""The adversary's training loop."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from protection.audit.attacks import Attack
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.epochs import Epochs
from protection.audit.fine_tuning import FineTuningMetrics, at_chance, fine_tune, stratified
from protection.audit.preparations import PREPARATIONS
from protection.batches import EpochStream, TensorImages, read_batch
from protection.evaluation import accuracy
from protection.models import Classifier
from protection.seeds import generator, seeded
from protection.sophon.adversary import METHODS, OPTIMIZERS, Strategy
from protection.sophon.fine_tuning import begin_fine_tuning
from tests.conftest import tiny_classifier
from tests.protection.audit.attacking import IMAGES, TEST, attack, curve, means, network

CPU = torch.device("cpu")


def simulated_curve(strategy: Strategy, *, epochs: int) -> list[FineTuningMetrics]:
    """Fine-tuning as SOPHON simulates it, in an ordinary loop."""
    model = tiny_classifier(dropout=0.2)
    tuning = begin_fine_tuning(model, strategy, num_classes=3, rng=generator(3, "head"))
    stream, metrics = EpochStream(len(IMAGES), 3, "fine-tuning"), []
    for epoch in range(epochs):
        losses = []
        with seeded(3, "epoch", epoch, device=CPU):
            # 40 images are 3 batches of 16: the last one reads on into the next epoch.
            for step in range(3 * epoch, 3 * epoch + 3):
                batch = read_batch(IMAGES, stream.at(16 * step, 16), device=CPU)
                (images,), labels = model.examples(batch)
                loss = F.cross_entropy(model(images), labels)
                tuning.step(torch.autograd.grad(loss, tuning.wanted))
                losses.append(loss.detach())
        shown = torch.stack(losses).mean().item(), accuracy(model, TEST, device=CPU)
        metrics.append(FineTuningMetrics(epoch, *shown))
    return metrics


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
# Low-rank changes are drawn by other names, and rounded elsewhere.
@pytest.mark.parametrize("method", [name for name in METHODS if name != "lora"])
def test_what_sophon_simulates_is_an_ordinary_training_loop(method: str, optimizer: str) -> None:
    values = {"method": method, "optimizer": optimizer, "finetune_lr": 0.01}
    values = {**values, "batch_size": 16, "weight_decay": 0.01}
    ours = curve(tiny_classifier(dropout=0.2), Attack(**values), epochs=3)
    assert ours == simulated_curve(Strategy(**values), epochs=3)


def test_fine_tuning_learns() -> None:
    assert curve(tiny_classifier(), attack(), epochs=12)[-1].test_accuracy > 0.8


@pytest.mark.parametrize("preparation", PREPARATIONS)
def test_an_attack_repeats_by_its_seed_and_leaves_the_global_generator(preparation: str) -> None:
    settings = {"preparation": preparation, "method": "lora", "optimizer": "adam"}
    an_attack = attack(**settings, augmentation="crop_and_flip", data_fraction=0.5)
    state = torch.get_rng_state()
    first, again, other = (
        curve(network(), an_attack, seed=seed, means=means()) for seed in (3, 3, 4)
    )
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_a_diverged_attack_goes_on_and_shows_it() -> None:
    metrics = curve(tiny_classifier(), attack(finetune_lr=3e38))
    assert len(metrics) == 2
    assert not math.isfinite(metrics[-1].loss)
    assert 0 <= metrics[-1].test_accuracy <= 1


def test_epochs_are_multiples_of_the_defenders() -> None:
    for factor, epochs in ((3.0, 6), (0.5, 1), (0.1, 1)):
        metrics = curve(tiny_classifier(), attack(epochs_factor=factor))
        assert [m.epoch for m in metrics] == list(range(epochs))


def test_schedule_and_warm_up_reach_the_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def rates(**changes: object) -> list[float]:
        seen: list[float] = []

        class Watched(torch.optim.SGD):
            def step(self, closure: None = None) -> None:
                seen.append(self.param_groups[0]["lr"])
                super().step(closure)

        monkeypatch.setitem(OPTIMIZERS, "sgd", Watched)
        curve(tiny_classifier(), attack(finetune_lr=0.1, **changes), epochs=4)
        return seen

    assert rates() == [0.1] * 12
    assert rates(warmup_share=0.25) == pytest.approx([0.1 / 3, 0.2 / 3, *[0.1] * 10])
    cosine = rates(schedule="cosine", warmup_share=0.25)
    assert cosine[:4] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1])
    expected = [0.05 * (1 + math.cos(math.pi * k / 9)) for k in range(9)]
    assert cosine[3:] == pytest.approx(expected)


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
def test_every_augmentation_is_trained_on_or_is_none(augmentation: str) -> None:
    plain = curve(tiny_classifier(), attack())
    augmented = curve(tiny_classifier(), attack(augmentation=augmentation))
    assert (augmented == plain) == (augmentation == "none")


def test_labels_are_smoothed() -> None:
    plain, smooth = (
        curve(tiny_classifier(), attack(label_smoothing=value), epochs=1)[0].loss
        for value in (0.0, 0.5)
    )
    assert plain != smooth


def test_a_fraction_of_the_images_is_all_that_is_trained_on() -> None:
    seen: set[int] = set()

    class Watched(TensorImages):
        def read(self, indices: torch.Tensor) -> torch.Tensor:
            seen.update(indices.tolist())
            return super().read(indices)

    images = Watched(IMAGES.images, IMAGES.labels, num_classes=3)
    an_attack = attack(data_fraction=0.1, batch_size=4)
    list(fine_tune(tiny_classifier(), an_attack, images, TEST, epochs=3, seed=0))
    assert len(seen) == 3  # 10 % of 14, 13 and 13
    assert set(IMAGES.labels[sorted(seen)].tolist()) == {0, 1, 2}


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=6).filter(any),
    fraction=st.floats(0.001, 1),
    seed=st.integers(0, 99),
)
def test_fractions_are_of_each_class_and_at_least_one_image(
    sizes: list[int], fraction: float, seed: int
) -> None:
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=generator(seed))]
    chosen = stratified(labels, fraction=fraction, seed=seed)
    assert torch.equal(chosen, chosen.unique())
    counts = labels[chosen].bincount(minlength=len(sizes)).tolist()
    assert counts == [min(size, max(1, round(fraction * size))) for size in sizes]
    larger = stratified(labels, fraction=(1 + fraction) / 2, seed=seed)
    assert set(chosen.tolist()) <= set(larger.tolist())
    assert torch.equal(stratified(labels, fraction=1.0, seed=seed), torch.arange(len(labels)))


def test_a_pass_reads_every_chosen_image_once_in_every_epoch() -> None:
    epochs = Epochs(IMAGES, torch.arange(0, 40, 2), 5, ("key",))
    seen = [labels for epoch in range(2) for _, (_, labels) in epochs.batches(epoch, device=CPU)]
    assert epochs.num_steps == 4
    assert [step for step, _ in epochs.batches(1, device=CPU)] == [4, 5, 6, 7]
    for labels in (seen[:4], seen[4:]):
        assert torch.equal(torch.cat(labels).sort().values, IMAGES.labels[::2].sort().values)


def hopeless() -> Classifier:
    """A model whose features say nothing: every image looks alike, to any head."""
    model = tiny_classifier()
    with torch.no_grad():
        model.network.norm.weight.zero_()
    return model


def test_a_hopeless_attack_is_given_up_only_when_asked() -> None:
    head = attack(method="head_only")
    whole = curve(hopeless(), head, epochs=6)
    assert [m.stopped for m in whole] == [False] * 6
    given_up = curve(hopeless(), head, epochs=6, stop_hopeless_after=2)
    assert [m.stopped for m in given_up] == [False, True]
    assert [m._replace(stopped=False) for m in given_up] == whole[:2]
    # Nothing was saved where it was the last epoch.
    assert [m.stopped for m in curve(hopeless(), head, stop_hopeless_after=2)] == [False, False]
    # One that gets anywhere is never stopped, whatever came before.
    learning = curve(tiny_classifier(), attack(), epochs=12, stop_hopeless_after=3)
    assert len(learning) == 12


def test_adapters_are_merged_also_where_the_attack_is_given_up() -> None:
    model = network()
    names = model.network.state_dict().keys()
    epochs = fine_tune(model, attack(method="lora"), IMAGES, TEST, epochs=5, seed=0)
    next(epochs)
    assert model.network.state_dict().keys() != names
    epochs.close()
    assert model.network.state_dict().keys() == names


def test_chance_is_the_commonest_class_and_its_luck() -> None:
    labels = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)
    images = TensorImages(torch.zeros(100, 3, 2, 2).byte(), labels, num_classes=3)
    assert at_chance(images) == pytest.approx(0.5 + 2 * math.sqrt(0.5 * 0.5 / 100))
