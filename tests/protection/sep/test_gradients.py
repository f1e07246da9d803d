import pytest
import torch
from torch import Tensor

from protection.batches import TensorImages
from protection.sep.gradients import (
    TargetLoss,
    build_ensemble,
    ensemble_gradient,
    input_gradient,
    member_gradients,
)
from protection.sep.trajectory import Member, class_means, evenly_spaced
from protection.workers import Workers
from tests.protection.sep.members import random_pixels, tiny_models
from tests.references import sep as references

MODELS = tiny_models(5)
INPUTS = torch.stack(random_pixels(6, 3, 8, 8, seed=2)).double() / 255
TARGETS = torch.tensor([1, 0, 3, 2, 1, 3])
IMAGES = TensorImages(
    torch.stack(random_pixels(10, 3, 8, 8, seed=3)), torch.arange(10) % 4, num_classes=4
)


def members(*, aligned: bool) -> dict[int, Member]:
    means: list[Tensor | None] = [*class_means(MODELS, IMAGES)] if aligned else [None] * 5
    return {n: Member(m, mean) for n, (m, mean) in enumerate(zip(MODELS, means, strict=True))}


def mean_gradient(all_members: dict[int, Member], **options: int) -> Tensor:
    ensemble = build_ensemble(all_members, size=len(all_members), **options)
    return ensemble_gradient(ensemble, member_gradients(ensemble, INPUTS, TARGETS))


@pytest.mark.parametrize("aligned", [False, True])
def test_mean_gradient_is_the_gradient_of_the_mean_loss(aligned: bool) -> None:
    inputs = INPUTS.clone().requires_grad_()
    losses = [
        TargetLoss(member.model)(inputs, TARGETS, member.class_means)
        for member in members(aligned=aligned).values()
    ]
    (expected,) = torch.autograd.grad(sum(losses) / 5, inputs)
    torch.testing.assert_close(mean_gradient(members(aligned=aligned)), expected)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("chunk", [2, 3, 5])
def test_vectorised_members_give_the_gradients_of_one_after_another(
    aligned: bool, chunk: int
) -> None:
    found = mean_gradient(members(aligned=aligned), vectorised_members=chunk)
    torch.testing.assert_close(found, mean_gradient(members(aligned=aligned)))


def test_order_of_members_does_not_matter_and_one_is_the_plain_gradient() -> None:
    own = members(aligned=False)
    backwards = {4 - number: member for number, member in own.items()}
    torch.testing.assert_close(mean_gradient(backwards), mean_gradient(own))
    alone = mean_gradient({0: own[0]})
    assert torch.equal(alone, input_gradient(own[0], INPUTS, TARGETS))


def test_gradients_leave_no_trace_in_the_members() -> None:
    before = [{k: v.clone() for k, v in m.state_dict().items()} for m in MODELS]
    mean_gradient(members(aligned=True), vectorised_members=2)
    for model, state in zip(MODELS, before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not model.training


def test_class_means_equal_the_reference_for_every_share_of_workers() -> None:
    expected = [
        torch.stack(
            [
                references.class_mean(model, IMAGES.images.double() / 255, IMAGES.labels, label)
                for label in range(4)
            ]
        )
        for model in MODELS
    ]
    for found, mean in zip(class_means(MODELS, IMAGES), expected, strict=True):
        # Features enter in multiples of 2**-24, and means leave as float32.
        torch.testing.assert_close(found, mean.float(), rtol=1e-6, atol=1e-7)

    many = TensorImages(
        torch.stack(random_pixels(700, 3, 8, 8, seed=4)), torch.arange(700) % 4, num_classes=4
    )
    alone = class_means(MODELS, many)
    parts: list[list[Tensor]] = []
    for rank in range(2):
        class_means(MODELS, many, workers=Workers(rank, 2, lambda sums: parts.append([*sums])))
    counts = torch.bincount(many.labels).unsqueeze(1)
    for first, second, mean in zip(*parts, alone, strict=True):
        assert torch.equal(((second + first) / counts).float(), mean)  # exact, in any order


def test_class_without_an_image_has_no_mean() -> None:
    images = TensorImages(IMAGES.images[:2], torch.tensor([0, 2]), num_classes=4)
    (mean,) = class_means(MODELS[:1], images)
    assert mean[1].isnan().all()
    assert mean[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    ("count", "total", "expected"),
    [
        (30, 120, [*range(3, 120, 4)]),  # the released trajectory: after epochs 4, 8 ... 120
        (15, 30, [*range(1, 30, 2)]),
        (1, 30, [29]),
        (3, 3, [0, 1, 2]),
        (3, 7, [1, 3, 6]),
    ],
)
def test_evenly_spaced_ends_with_the_last(count: int, total: int, expected: list[int]) -> None:
    assert evenly_spaced(count, total=total) == expected


def test_more_members_than_checkpoints_are_refused() -> None:
    with pytest.raises(ValueError, match="count is 4, but there are 3"):
        evenly_spaced(4, total=3)
    with pytest.raises(ValueError, match="members is empty"):
        build_ensemble({}, size=3)
