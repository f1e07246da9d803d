"""The protecting model's trajectory: which of its checkpoints are members, and their class means.

A *trajectory* is the saved states of one ordinary training run in training order. The *members* of
the ensemble are evenly spaced in it; none is chosen by its accuracy.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from protection.batches import Images, read_batch
from protection.models import Classifier
from protection.workers import ALONE, Workers

# As many images a pass as fill a device; the sums do not depend on it.
_BLOCK_SIZE: Final = 256
# Features are summed in multiples of this: such a sum is exact in float64 (up to 2**29), so it does
# not depend on the order of images or on which worker read them.
_FEATURE_QUANTUM: Final = 2.0**-24


class Member(NamedTuple):
    """A checkpoint in eval mode without weight gradients, and where it puts each class."""

    model: Classifier
    """Where there are ``weights``, one network that members take turns in."""
    class_means: Tensor | None
    """``(K, D)`` float32 mean penultimate feature of each class; None without feature alignment."""
    weights: Sequence[Tensor] | None = None
    """In the host's memory, as `in_host_memory` gives them; None: ``model`` is its own."""

    def placed(self) -> Classifier:
        """The network with this member's weights, until another member is placed."""
        if self.weights is not None:
            for tensor, value in zip(_tensors(self.model), self.weights, strict=True):
                tensor.copy_(value, non_blocking=True)
        return self.model


def in_host_memory(model: Classifier, *, pinned: bool) -> list[Tensor]:
    """Weights and statistics of ``model``, for a `Member` that has no network of its own.

    Args:
        model: on the CPU; what is returned shares its memory, if not ``pinned``.
        pinned: in memory that a GPU reads by itself.
    """
    return [tensor.pin_memory() if pinned else tensor for tensor in _tensors(model)]


def _tensors(model: Classifier) -> list[Tensor]:
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def evenly_spaced(count: int, *, total: int) -> list[int]:
    """``count`` different numbers of ``[0, total)``, evenly spaced, the last among them.

    Raises:
        ValueError: ``count`` is not in ``[1, total]``.
    """
    if not 1 <= count <= total:
        raise ValueError(
            f"count is {count}, but there are {total} to choose from; expected 1 to {total}"
        )
    return [total * (position + 1) // count - 1 for position in range(count)]


def freeze(model: Classifier) -> Classifier:
    """Return ``model`` in eval mode, its parameters needing no gradient: a member to be."""
    return model.eval().requires_grad_(False)


def class_means(
    models: Sequence[Classifier], images: Images, *, workers: Workers = ALONE
) -> list[Tensor]:
    """``(K, D)`` mean penultimate feature of each class of ``images``, for each model.

    All workers must call it; each reads a part of the images, all get the same numbers. A class
    without an image has a mean of NaN.

    Source: SEP, section 3.3.
    """
    device = models[0].device
    blocks = torch.split(torch.arange(len(images)), _BLOCK_SIZE)
    sums = [
        torch.zeros(images.num_classes, model.head.in_features, dtype=torch.float64, device=device)
        for model in models
    ]
    for number in workers.share(len(blocks)):
        batch = read_batch(images, blocks[number], device=device)
        for model, total in zip(models, sums, strict=True):
            with torch.no_grad():
                features = model.features(batch.images).double()
            quanta = (features / _FEATURE_QUANTUM).round() * _FEATURE_QUANTUM
            total.index_add_(0, batch.labels, quanta)
    workers.sum_in_place(sums)
    counts = torch.bincount(images.labels, minlength=images.num_classes).to(device)
    return [(total / counts.unsqueeze(1)).float() for total in sums]


def target_labels(
    labels: Tensor, *, num_classes: int, target_classes: Sequence[int] | None = None
) -> Tensor:
    """``(B,)`` wrong class of each of ``labels``: by ``target_classes``, or half the count away.

    Source: SEP, section 4.1 ((y + 5) mod 10 on CIFAR-10, (y + 50) mod 100 on CIFAR-100).
    """
    if target_classes is None:
        return (labels + num_classes // 2) % num_classes
    return torch.tensor(target_classes, device=labels.device)[labels]
