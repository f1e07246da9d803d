"""Gradients of the members' losses with respect to their input, and their mean.

Shapes: ``B`` batch, ``C H W`` image, ``K`` classes, ``D`` features, ``M`` members.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.nn import functional as F

from protection.models import Classifier
from protection.precision import computing_in
from protection.sep.trajectory import Member
from protection.workers import ALONE, Workers

Gradients: TypeAlias = Callable[[Tensor, Tensor], Iterator[tuple[int, Tensor]]]
"""From inputs and target labels to each member's number and gradient, ``(B, 3, H, W)``."""


class TargetLoss(nn.Module):
    """How far one member is from taking its inputs for their wrong classes."""

    def __init__(self, model: Classifier) -> None:
        """Measure by ``model``."""
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor, target_labels: Tensor, class_means: Tensor | None) -> Tensor:
        """Sum of the loss over the batch, so that no image's gradient depends on the others.

        Args:
            inputs: ``(B, 3, H, W)`` float in [0, 1].
            target_labels: ``(B,)`` wrong classes.
            class_means: ``(K, D)``: the loss is the squared distance to the wrong class's mean
                feature (feature alignment); None: the cross-entropy to the wrong class.

        Source: SEP, sections 3.2 and 3.3.
        """
        if class_means is None:
            return F.cross_entropy(
                _at_least_float32(self.model(inputs)), target_labels, reduction="sum"
            )
        distance = _at_least_float32(self.model.features(inputs)) - class_means[target_labels]
        return distance.square().sum()


def input_gradient(
    member: Member, inputs: Tensor, target_labels: Tensor, *, precision: torch.dtype = torch.float32
) -> Tensor:
    """``(B, 3, H, W)`` gradient of one member's loss; no weight gradient is computed."""
    inputs = inputs.detach().requires_grad_()
    with computing_in(precision, inputs.device.type):
        loss = TargetLoss(member.placed())(inputs, target_labels, member.class_means)
    (gradient,) = torch.autograd.grad(loss, inputs)
    return gradient


def one_by_one(members: Mapping[int, Member], *, precision: torch.dtype) -> Gradients:
    """Gradients of one member after another: one graph is alive at a time.

    Members whose weights are in the host's memory are copied to the device for it.
    """

    def gradients(inputs: Tensor, target_labels: Tensor) -> Iterator[tuple[int, Tensor]]:
        for number, member in members.items():
            yield number, input_gradient(member, inputs, target_labels, precision=precision)

    return gradients


def vectorised(members: Mapping[int, Member], *, precision: torch.dtype) -> Gradients:
    """Gradients of all ``members`` in one pass; costs a second copy of their weights.

    The same numbers as `one_by_one`, up to rounding. Pays where one member's kernels do not fill
    the device: on a CPU it takes longer (benchmarks/sep_crafting.py).

    Raises:
        ValueError: members share one network.
    """
    if any(member.weights is not None for member in members.values()):
        raise ValueError("members share one network; expected one after another, or all resident")
    models = [member.model for member in members.values()]
    means = [member.class_means for member in members.values() if member.class_means is not None]
    stacked_means = torch.stack(means) if means else None
    loss = TargetLoss(models[0])
    parameters, buffers = stack_module_state([TargetLoss(model) for model in models])

    def loss_of_one(
        weights: dict[str, Tensor],
        statistics: dict[str, Tensor],
        inputs: Tensor,
        target_labels: Tensor,
        class_means: Tensor | None,
    ) -> Tensor:
        arguments = (inputs, target_labels, class_means)
        return cast(Tensor, functional_call(loss, (weights, statistics), arguments))

    losses = torch.vmap(loss_of_one, in_dims=(0, 0, 0, None, 0 if means else None))

    def gradients(inputs: Tensor, target_labels: Tensor) -> Iterator[tuple[int, Tensor]]:
        # A copy for each member: the gradient of one shared input would be their sum only.
        device_type = inputs.device.type
        copies = inputs.detach().expand(len(models), *inputs.shape).clone().requires_grad_()
        # Autocast alone: the faster kernels of a CPU are not written for stacks of members.
        with torch.autocast(device_type, precision, enabled=precision != torch.float32):
            total = losses(parameters, buffers, copies, target_labels, stacked_means).sum()
        (stacked,) = torch.autograd.grad(total, copies)
        yield from zip(members, stacked, strict=True)

    return gradients


class Ensemble(NamedTuple):
    """The members, of which this worker may hold a part, and how their gradients are computed."""

    members: Mapping[int, Member]
    """Those that this worker holds, by their number in ``[0, size)``."""
    size: int
    chunks: Sequence[Gradients]
    """Between them all of ``members``."""
    precision: torch.dtype
    inner_class_means: Tensor | None = None
    """``(K, D)`` to align every member to in variance reduction's inner loop; None: its own."""
    workers: Workers = ALONE
    """Who hold the others; every worker must take part in every mean."""

    @property
    def any_model(self) -> Classifier:
        """One of the members' networks; all are on one device and of one dtype."""
        return next(iter(self.members.values())).model


def build_ensemble(
    members: Mapping[int, Member],
    *,
    size: int,
    vectorised_members: int = 1,
    precision: torch.dtype = torch.float32,
    inner_class_means: Tensor | None = None,
    workers: Workers = ALONE,
) -> Ensemble:
    """Ensemble of ``size`` members, of which this worker holds ``members``.

    Raises:
        ValueError: this worker holds none.
    """
    if not members:
        raise ValueError("members is empty, so there is no gradient; expected at least 1")
    numbers = sorted(members)
    compute = one_by_one if vectorised_members == 1 else vectorised
    chunks = [
        compute(
            {number: members[number] for number in numbers[first : first + vectorised_members]},
            precision=precision,
        )
        for first in range(0, len(numbers), vectorised_members)
    ]
    return Ensemble(members, size, chunks, precision, inner_class_means, workers)


def member_gradients(
    ensemble: Ensemble, inputs: Tensor, target_labels: Tensor
) -> Iterator[tuple[int, Tensor]]:
    """Gradient of each member that this worker holds, with its number."""
    for gradients in ensemble.chunks:
        yield from gradients(inputs, target_labels)


def ensemble_gradient(ensemble: Ensemble, gradients: Iterator[tuple[int, Tensor]]) -> Tensor:
    """``(B, 3, H, W)`` float64 mean of ``gradients`` over all members of all workers.

    In float64 the order of summation, and with it the split over workers, does not reach the sign.
    """
    _, first = next(gradients)  # build_ensemble refuses to hold no member
    total = first.to(torch.float64, copy=True)
    for _, gradient in gradients:
        total += gradient
    ensemble.workers.sum_in_place([total])
    return total.div_(ensemble.size)


def inner_change(
    ensemble: Ensemble,
    number: int,
    inputs: Tensor,
    start_inputs: Tensor,
    target_labels: Tensor,
    *,
    at_start: Mapping[int, Tensor],
) -> Tensor:
    """``(B, 3, H, W)`` float64: the gradient of member ``number`` at ``inputs`` minus at the start.

    Args:
        ensemble: all its workers must call this; the one that holds the member computes.
        number: of the member.
        inputs: ``(B, 3, H, W)``.
        start_inputs: likewise, where ``at_start`` was taken.
        target_labels: ``(B,)`` wrong classes.
        at_start: gradients of this worker's members at ``start_inputs``.
    """
    change = torch.zeros_like(inputs, dtype=torch.float64)
    if (member := ensemble.members.get(number)) is not None:
        before = at_start[number]
        if ensemble.inner_class_means is not None:
            member = member._replace(class_means=ensemble.inner_class_means)
            before = input_gradient(
                member, start_inputs, target_labels, precision=ensemble.precision
            )
        here = input_gradient(member, inputs, target_labels, precision=ensemble.precision)
        change += here.double() - before.double()
    ensemble.workers.sum_in_place([change])
    return change


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()
