"""Whether somebody who has a protected dataset could tell its protected images from clean ones.

A bounded number of images is read, at their own size: resizing would blur what a probe looks for.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from protection.audit.detectability import Detection, detect
from protection.seeds import generator
from ray_jobs.protected_datasets import matching_order
from storage.datasets import ImageDataset

# Not recipe fields: reports are to be comparable.
_SEED: Final = 0
_NUM_PAIRS: Final = 1000
# Where only a share is protected, so many are looked through for them.
_MOST_READ: Final = 10_000
# Of fewer the score would be chance for the most part.
_FEWEST_PAIRS: Final = 100
_CHUNK_SIZE: Final = 250
_SIDE: Final = 32


def detect_protected(protected: ImageDataset, clean: ImageDataset) -> dict[str, Detection] | None:
    """Score probes on squares from the middle of images; None where too few are protected.

    Raises:
        JobError: the two do not hold the same images.
    """
    pairs = list(_changed_pairs(protected, clean))
    if len(pairs) < _FEWEST_PAIRS:
        return None
    side = min(min(image.shape[-2:]) for image, _ in pairs)
    after, before = (
        torch.stack([_middle(image, side) for image in images])
        for images in zip(*pairs, strict=True)
    )
    return detect(after, before, seed=_SEED)


def _changed_pairs(protected: ImageDataset, clean: ImageDataset) -> Iterator[tuple[Tensor, Tensor]]:
    """Some protected images, each with its clean one: three colours, from the middle."""
    order = matching_order(protected, clean)
    rows = torch.randperm(len(protected), generator=generator(_SEED, "detection sample"))
    found = 0
    for chunk in torch.split(rows[:_MOST_READ], _CHUNK_SIZE):
        pairs = zip(protected.originals(chunk), clean.originals(order[chunk]), strict=True)
        for after, before in pairs:
            if found < _NUM_PAIRS and not torch.equal(after, before):
                found += 1
                yield _middle(_colours(after), _SIDE), _middle(_colours(before), _SIDE)
        if found == _NUM_PAIRS:
            return


def _colours(image: Tensor) -> Tensor:
    """``(3, H, W)`` of ``(C, H, W)``: grey three times, alpha left out."""
    return image[:1].expand(3, -1, -1) if len(image) < 3 else image[:3]


def _middle(image: Tensor, side: int) -> Tensor:
    """The square of ``side`` pixels in the middle, or as much of it as there is."""
    height, width = image.shape[-2:]
    top, left = max(0, height - side) // 2, max(0, width - side) // 2
    return image[:, top : top + side, left : left + side]
