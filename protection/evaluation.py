"""Accuracy, counted over blocks of images that workers share."""

from typing import Final

import torch
from torch import nn

from protection.batches import Images, read_batch
from protection.preservation import evaluating
from protection.workers import ALONE, Workers

# Large enough to fill a device, small enough that a block of 224-pixel images is 40 MB of bytes.
_BLOCK_SIZE: Final = 256


def accuracy(
    model: nn.Module,
    images: Images,
    *,
    device: torch.device,
    workers: Workers = ALONE,
    max_images: int | None = None,
) -> float:
    """Share of ``images`` whose class ``model`` ranks first, in [0, 1], in eval mode.

    Measured on ``max_images`` of them, evenly spaced, or on all where it is None. All workers must
    call it; all get the same number. A set of more classes than the model has counts the classes it
    cannot name as wrong.
    """
    if len(images) == 0:
        raise ValueError("images is empty, so it has no accuracy; expected at least 1 image")
    # Evenly spaced: the first images of a folder are all of its first class.
    num_images = min(len(images), max_images or len(images))
    chosen = torch.arange(num_images) * len(images) // num_images
    blocks = torch.split(chosen, _BLOCK_SIZE)
    correct = torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for block in workers.share(len(blocks)):
            batch = read_batch(images, blocks[block], device=device)
            correct += (model(batch.images).argmax(dim=-1) == batch.labels).sum()
    workers.sum_in_place([correct])
    return correct.item() / num_images
