"""Accuracy, counted over blocks of images that workers share."""

from typing import Final

import torch

from protection.batches import Images, read_batch
from protection.preservation import evaluating
from protection.released import ReleasedModel
from protection.workers import ALONE, Workers

# Large enough to fill a device, small enough that a block of 224-pixel images is 40 MB of bytes.
BLOCK_SIZE: Final = 256


def accuracy(
    model: ReleasedModel,
    images: Images,
    *,
    device: torch.device,
    workers: Workers = ALONE,
    max_images: int | None = None,
) -> float:
    """How right ``model`` is about ``images`` on average, in eval mode, as its task defines it.

    Of a classifier: the share of images whose class it ranks first, in [0, 1]; classes that it
    cannot name count as wrong. Measured on ``max_images`` of them, evenly spaced, or on all where
    it is None. All workers must call it; all get the same number, and so does every model of what
    is drawn at random.
    """
    if len(images) == 0:
        raise ValueError("images is empty, so it has no accuracy; expected at least 1 image")
    # Evenly spaced: the first images of a folder are all of its first class.
    num_images = min(len(images), max_images or len(images))
    chosen = torch.arange(num_images) * len(images) // num_images
    blocks = torch.split(chosen, BLOCK_SIZE)
    task, right = model.task, torch.zeros((), dtype=torch.float64, device=device)
    with evaluating(model):
        for block in workers.share(len(blocks)):
            batch = read_batch(images, blocks[block], device=device)
            for draw in range(task.draws):
                inputs, targets = model.examples(batch, "accuracy", block, draw)
                right += task.rightness(model(*inputs), targets).double().sum()
    workers.sum_in_place([right])
    return right.item() / (num_images * task.draws)
