"""The algorithm against its float64 transcription, and the budget as a property."""

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from protection.batches import TensorImages
from protection.models import Classifier, ModelConfig, build_model
from protection.seeds import generator
from protection.sep.algorithm import perturb
from protection.sep.config import SepConfig
from protection.sep.gradients import Ensemble, build_ensemble
from protection.sep.trajectory import (
    Member,
    class_means,
    freeze,
    in_host_memory,
    target_labels,
)
from protection.workers import Workers
from tests.protection.sep.members import random_pixels, tiny_models
from tests.references import sep as references

MODELS = tiny_models(3)
REFERENCE = TensorImages(
    torch.stack(random_pixels(12, 3, 8, 8, seed=9)), torch.arange(12) % 4, num_classes=4
)
MEANS = class_means(MODELS, REFERENCE)
IMAGES = random_pixels(5, 3, 8, 8, seed=1)
TARGETS = torch.tensor([2, 3, 0, 1, 2])


def an_ensemble(*, aligned: bool, **options: object) -> Ensemble:
    members = {
        number: Member(model, mean if aligned else None)
        for number, (model, mean) in enumerate(zip(MODELS, MEANS, strict=True))
    }
    return build_ensemble(members, size=3, **options)


def losses_of(target: int, *, aligned: bool, means: list[Tensor]) -> list[Callable]:
    def cross_entropy(model: Classifier, image: Tensor) -> Tensor:
        return references.cross_entropy_to_target(model, image, target)

    def distance(model: Classifier, mean: Tensor, image: Tensor) -> Tensor:
        return references.squared_feature_distance(model, image, mean[target])

    if not aligned:
        return [functools.partial(cross_entropy, model) for model in MODELS]
    pairs = zip(MODELS, means, strict=True)
    return [functools.partial(distance, model, mean) for model, mean in pairs]


@pytest.mark.parametrize("aligned", [False, True])
def test_sep_equals_the_reference_to_the_last_level(aligned: bool) -> None:
    config = SepConfig(
        epsilon_levels=8, step_size_levels=1.5, steps=6, members=3, feature_alignment=aligned
    )
    found = perturb(IMAGES, TARGETS, an_ensemble(aligned=aligned), image_size=8, config=config)
    for image, clean, target in zip(found, IMAGES, TARGETS.tolist(), strict=True):
        expected = references.sep(
            clean.double() / 255,
            losses_of(target, aligned=aligned, means=MEANS),
            steps=6,
            step_size=1.5 / 255,
            epsilon=8 / 255,
        )
        assert torch.equal(image.double(), (expected * 255).round())
        assert not torch.equal(image, clean)


@pytest.mark.parametrize(
    ("aligned", "last_member_means"), [(False, False), (True, False), (True, True)]
)
def test_variance_reduction_equals_the_reference(aligned: bool, last_member_means: bool) -> None:
    config = SepConfig(
        epsilon_levels=8,
        steps=3,
        members=3,
        feature_alignment=aligned,
        variance_reduction=True,
        inner_steps=4,
        last_member_means=last_member_means,
    )
    inner_class_means = MEANS[-1] if last_member_means else None
    ensemble = an_ensemble(aligned=aligned, inner_class_means=inner_class_means)
    found = perturb(IMAGES, TARGETS, ensemble, image_size=8, config=config, key=("block", 7))
    drawn = [
        torch.randint(3, (4,), generator=generator(0, "inner members", "block", 7, step)).tolist()
        for step in range(3)
    ]
    for image, clean, target in zip(found, IMAGES, TARGETS.tolist(), strict=True):
        expected = references.sep_vr(
            clean.double() / 255,
            losses_of(target, aligned=aligned, means=MEANS),
            inner_losses=losses_of(
                target, aligned=aligned, means=[MEANS[-1]] * 3 if last_member_means else MEANS
            ),
            drawn=drawn,
            step_size=1 / 255,
            epsilon=8 / 255,
        )
        assert torch.equal(image.double(), (expected * 255).round())


def test_released_inner_means_are_another_algorithm_than_the_papers() -> None:
    def run(*, last_member_means: bool) -> Tensor:
        config = SepConfig(
            steps=4,
            members=3,
            feature_alignment=True,
            variance_reduction=True,
            last_member_means=last_member_means,
        )
        ensemble = an_ensemble(
            aligned=True, inner_class_means=MEANS[-1] if last_member_means else None
        )
        return torch.stack(perturb(IMAGES, TARGETS, ensemble, image_size=8, config=config))

    assert not torch.equal(run(last_member_means=False), run(last_member_means=True))


@pytest.mark.parametrize("variance_reduction", [False, True])
def test_members_that_take_turns_in_one_network_give_the_same_bytes(
    variance_reduction: bool,
) -> None:
    shared = copy.deepcopy(MODELS[0])
    members = {
        number: Member(shared, mean, in_host_memory(model, pinned=False))
        for number, (model, mean) in enumerate(zip(MODELS, MEANS, strict=True))
    }
    config = SepConfig(
        steps=3, members=3, feature_alignment=True, variance_reduction=variance_reduction
    )
    found, expected = (
        torch.stack(perturb(IMAGES, TARGETS, ensemble, image_size=8, config=config))
        for ensemble in (build_ensemble(members, size=3), an_ensemble(aligned=True))
    )
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="share one network; expected one after another"):
        build_ensemble(members, size=3, vectorised_members=3)


@pytest.mark.parametrize("num_classes", [100, 1000])
def test_large_images_of_many_classes_move_toward_their_wrong_classes(num_classes: int) -> None:
    config = ModelConfig(architecture="timm/vit_tiny_patch16_224", image_size=224)
    members = {}
    for number in range(2):
        torch.manual_seed(number)
        members[number] = Member(freeze(build_model(config, num_classes=num_classes)), None)
    images = random_pixels(2, 3, 224, 224, seed=5)
    targets = target_labels(torch.tensor([3, num_classes - 1]), num_classes=num_classes)
    assert targets.tolist() == [3 + num_classes // 2, num_classes // 2 - 1]
    sep = SepConfig(epsilon_levels=4, steps=3, members=2)
    ensemble = build_ensemble(members, size=2)
    protected = perturb(images, targets, ensemble, image_size=224, config=sep)

    def losses(shown: list[Tensor]) -> list[Tensor]:
        inputs = torch.stack(shown) / 255
        with torch.no_grad():
            return [F.cross_entropy(member.model(inputs), targets) for member in members.values()]

    for before, after in zip(losses(images), losses(protected), strict=True):
        assert after < before
    moved = torch.stack(protected).int() - torch.stack(images).int()
    assert int(moved.abs().max()) <= 4


@pytest.mark.parametrize("variance_reduction", [False, True])
def test_members_split_over_workers_give_the_same_bytes(variance_reduction: bool) -> None:
    """Two workers that hold members 0, 2 and 1; their sums meet through a fake all-reduce."""
    import threading

    config = SepConfig(
        steps=3, members=3, feature_alignment=True, variance_reduction=variance_reduction
    )
    whole = perturb(IMAGES, TARGETS, an_ensemble(aligned=True), image_size=8, config=config)
    meeting, slots = threading.Barrier(2), {}

    def sum_in_place(rank: int, tensors: list[Tensor]) -> None:
        slots[rank] = [tensor.clone() for tensor in tensors]
        meeting.wait()
        for place, tensor in enumerate(tensors):
            tensor.copy_(slots[0][place] + slots[1][place])
        meeting.wait()

    results: dict[int, list[Tensor]] = {}

    def work(rank: int) -> None:
        members = {n: Member(MODELS[n], MEANS[n]) for n in range(rank, 3, 2)}
        workers = Workers(rank, 2, functools.partial(sum_in_place, rank))
        ensemble = build_ensemble(members, size=3, workers=workers)
        results[rank] = perturb(IMAGES, TARGETS, ensemble, image_size=8, config=config)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results.values():
        assert all(torch.equal(a, b) for a, b in zip(found, whole, strict=True))


def test_no_image_depends_on_the_others_of_its_batch() -> None:
    config = SepConfig(steps=4, members=3)
    ensemble = an_ensemble(aligned=False)
    together = perturb(IMAGES, TARGETS, ensemble, image_size=8, config=config)
    alone = [
        perturb([image], target[None], ensemble, image_size=8, config=config)[0]
        for image, target in zip(IMAGES, TARGETS, strict=True)
    ]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def test_perturbed_images_are_taken_for_their_wrong_class() -> None:
    """What all of it is for: the members' loss toward the wrong class falls."""
    config = SepConfig(epsilon_levels=16, steps=30, members=3)
    found = perturb(IMAGES, TARGETS, an_ensemble(aligned=False), image_size=8, config=config)

    def loss(images: list[Tensor]) -> float:
        inputs = torch.stack(images).double() / 255
        total = sum(torch.nn.functional.cross_entropy(model(inputs), TARGETS) for model in MODELS)
        return float(total) / 3

    assert loss(found) < loss(IMAGES) - 0.1  # of 1.49


@settings(max_examples=40)
@given(
    channels=st.integers(1, 4),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    epsilon_levels=st.integers(1, 32),
    step_size_levels=st.floats(0.1, 2),
    variance_reduction=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_no_value_leaves_the_budget_whatever_size_and_mode(
    channels: int,
    height: int,
    width: int,
    epsilon_levels: int,
    step_size_levels: float,
    variance_reduction: bool,
    seed: int,
) -> None:
    config = SepConfig(
        epsilon_levels=epsilon_levels,
        step_size_levels=step_size_levels,
        steps=3,
        members=3,
        variance_reduction=variance_reduction,
        inner_steps=2,
    )
    images = [
        *random_pixels(2, channels, height, width, seed=seed),
        *random_pixels(1, 3, 8, 8, seed=seed),
    ]
    # In float32, as in use: rounding must not carry a value out.
    members = {n: Member(tiny_float32(n), None) for n in range(3)}
    ensemble = build_ensemble(members, size=3)
    found = perturb(images, torch.tensor([0, 1, 2]), ensemble, image_size=8, config=config)
    for image, clean in zip(found, images, strict=True):
        assert image.shape == clean.shape
        assert image.dtype == torch.uint8
        assert int((image.int() - clean.int()).abs().max()) <= epsilon_levels
        if channels in (2, 4) and clean.shape[0] == channels:
            assert torch.equal(image[-1], clean[-1])  # alpha


@functools.cache
def tiny_float32(number: int) -> Classifier:
    return tiny_models(3)[number].float()


@given(num_classes=st.integers(2, 1000), seed=st.integers(0, 2**16))
def test_wrong_class_is_another_class_of_those_there_are(num_classes: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (20,), generator=rng)
    targets = target_labels(labels, num_classes=num_classes)
    assert bool((targets != labels).all())
    assert 0 <= int(targets.min()) <= int(targets.max()) < num_classes


def test_wrong_classes_of_the_papers() -> None:
    labels = torch.tensor([0, 4, 5, 9])
    assert target_labels(labels, num_classes=10).tolist() == [5, 9, 0, 4]
    assert target_labels(labels % 3, num_classes=3, target_classes=[1, 2, 0]).tolist() == [
        1,
        2,
        0,
        1,
    ]


@pytest.mark.parametrize("num_classes", [2, 37, 1000])
def test_any_number_of_classes_most_of_them_absent_from_the_block(num_classes: int) -> None:
    models = tiny_models(2, num_classes=num_classes)
    reference = TensorImages(
        torch.stack(random_pixels(num_classes, 3, 8, 8, seed=5)),
        torch.arange(num_classes),
        num_classes=num_classes,
    )
    means = class_means(models, reference)
    members = {n: Member(m, mean) for n, (m, mean) in enumerate(zip(models, means, strict=True))}
    config = SepConfig(epsilon_levels=4, steps=3, members=2, feature_alignment=True)
    targets = target_labels(torch.tensor([0, num_classes - 1]), num_classes=num_classes)
    found = perturb(
        IMAGES[:2], targets, build_ensemble(members, size=2), image_size=8, config=config
    )
    for image, clean in zip(found, IMAGES, strict=False):
        change = (image.int() - clean.int()).abs()
        assert 0 < int(change.max()) <= 3  # three steps of one level
