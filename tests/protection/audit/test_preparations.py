"""What an adversary does to a model before fine-tuning it."""

import copy

import pytest
import torch

from protection.audit.attacks import NO_MEANS, Means, Setup
from protection.audit.preparations import PREPARATIONS
from protection.batches import TensorImages
from protection.evaluation import accuracy
from protection.layers import weight_matrices
from protection.models import Classifier
from tests.conftest import random_images, tiny_classifier
from tests.protection.audit.attacking import attack, changed, copied, network

CPU = torch.device("cpu")
ORIGINAL = random_images(60, seed=21)


def prepare(model: Classifier, means: Means = NO_MEANS, **changes: object) -> None:
    an_attack = attack(**changes)
    PREPARATIONS[an_attack.preparation](Setup(model, an_attack, means, 3))


def test_no_preparation_changes_nothing() -> None:
    model = network()
    before = copied(model)
    prepare(model)
    assert changed(before, model) == set()


@pytest.mark.parametrize("architecture", ["timm/resnet18", "timm/vit_tiny_patch16_224"])
def test_pruning_zeroes_the_smallest_share_of_each_layer(architecture: str) -> None:
    model = network(architecture).to(memory_format=torch.channels_last)
    before = {m: getattr(m, n).clone() for m, n in weight_matrices(model.network)}
    prepare(model, preparation="prune", pruned_share=0.3)
    for module, name in weight_matrices(model.network):
        weight, old = getattr(module, name), before[module]
        is_zero = weight == 0
        assert is_zero.sum() == round(0.3 * weight.numel())
        assert torch.equal(weight[~is_zero], old[~is_zero])
        assert old[is_zero].abs().max() <= old[~is_zero].abs().min()


def test_int8_rounds_to_255_levels_of_each_channel() -> None:
    model = network()
    convolution = model.network.layer1[0].conv1
    with torch.no_grad():
        convolution.weight[0] = 0  # has no scale
    before = copied(model)
    prepare(model, preparation="int8")
    for module, name in weight_matrices(model.network):
        weight = getattr(module, name)
        assert weight.isfinite().all()
        assert all(len(channel.unique()) <= 255 for channel in weight)
    after = convolution.weight
    scale = before["layer1.0.conv1.weight"].abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    # Half a level, and the rounding of a float32 product.
    assert ((after - before["layer1.0.conv1.weight"]).abs() <= 0.5001 * scale).all()
    assert (after[0] == 0).all()
    assert not torch.equal(after, before["layer1.0.conv1.weight"])
    once = copied(model)
    prepare(model, preparation="int8")
    for name, tensor in copied(model).items():
        torch.testing.assert_close(tensor, once[name])


def test_healing_is_plain_training_on_original_images() -> None:
    model = tiny_classifier()
    assert accuracy(model, ORIGINAL, device=CPU) < 0.7
    settings = {"preparation_epochs": 12, "preparation_lr": 0.02, "preparation": "heal_original"}
    prepare(model, Means(original=ORIGINAL), **settings)
    assert accuracy(model, ORIGINAL, device=CPU) > 0.8
    again = tiny_classifier()
    prepare(again, Means(original=ORIGINAL), **settings)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_healing_on_an_unrelated_domain_leaves_the_head() -> None:
    model = network()
    before, head = copied(model), model.head
    prepare(model, Means(unrelated=random_images(40, 5)), preparation="heal_unrelated")
    assert model.head is head
    names = {name for name, _ in model.network.named_parameters()}
    assert changed(before, model) == names - {"fc.weight", "fc.bias"}


def test_a_new_network_learns_by_distillation_what_the_model_says() -> None:
    settings = {"preparation_epochs": 25, "preparation_lr": 0.02}
    teacher = tiny_classifier()
    prepare(teacher, Means(original=ORIGINAL), **settings, preparation="heal_original")
    # Of its own opinion: what it says is not what the labels are.
    with torch.no_grad():
        teacher.head.weight.copy_(teacher.head.weight[[1, 2, 0]])
        teacher.head.bias.copy_(teacher.head.bias[[1, 2, 0]])
    batch = ORIGINAL.images.float() / 255
    taught = teacher.eval()(batch).argmax(dim=1)
    said = TensorImages(ORIGINAL.images, taught, num_classes=3)
    settings["preparation"] = "distill"

    student, labels_only = copy.deepcopy(teacher), copy.deepcopy(teacher)
    prepare(student, Means(fresh=tiny_classifier, original=ORIGINAL), **settings)
    assert accuracy(student, said, device=CPU) > 0.8 > accuracy(tiny_classifier(), said, device=CPU)
    assert accuracy(student, ORIGINAL, device=CPU) < 0.4
    # A from-scratch start has nothing to teach, so it learns the labels.
    prepare(
        labels_only, Means(fresh=tiny_classifier, original=ORIGINAL, is_scratch=True), **settings
    )
    assert accuracy(labels_only, ORIGINAL, device=CPU) > 0.8


@pytest.mark.parametrize(
    ("preparation", "means", "missing"),
    [
        ("heal_original", NO_MEANS, "original"),
        ("heal_unrelated", Means(original=ORIGINAL), "unrelated"),
        ("distill", NO_MEANS, "original"),
        ("distill", Means(original=ORIGINAL), "fresh"),
    ],
)
def test_a_preparation_names_what_it_lacks(preparation: str, means: Means, missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing} is None, but preparation is '{preparation}'"):
        prepare(tiny_classifier(), means, preparation=preparation)
