"""Epochs of training: what fine-tuning and its preparations share."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protection.batches import Batch, EpochStream, Images, read_batch


class Epochs(NamedTuple):
    """Passes over some images of a set, each in an order of its own."""

    images: Images
    chosen: Tensor
    """``(n,)`` indices of the images that are used."""
    batch_size: int
    key: tuple[int | str, ...]
    """Names the orders."""

    @property
    def num_steps(self) -> int:
        """Batches in an epoch; the last one reads on into the next."""
        return -(-len(self.chosen) // self.batch_size)

    def batches(self, epoch: int, *, device: torch.device) -> Iterator[tuple[int, Batch]]:
        """Every batch of ``epoch``, with its step counted from the first epoch on."""
        stream = EpochStream(len(self.chosen), *self.key)
        for step in range(epoch * self.num_steps, (epoch + 1) * self.num_steps):
            indices = stream.at(step * self.batch_size, self.batch_size)
            yield step, read_batch(self.images, self.chosen[indices], device=device)


def descend(optimizer: torch.optim.Optimizer, trained: Sequence[Tensor], loss: Tensor) -> Tensor:
    """Take one step down ``loss`` in ``trained``; returns the loss, still on the device."""
    for parameter, grad in zip(trained, torch.autograd.grad(loss, trained), strict=True):
        parameter.grad = grad
    optimizer.step()
    return loss.detach()
