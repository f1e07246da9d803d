"""Patches of the two photographs that scikit-learn ships: a small set of natural images.

A class is a region, one of five vertical strips of a photograph, and the task is to say where a
patch is from. Guarantee: no pixel is in a patch of both splits, and the patches are the same for
everybody.
"""

from typing import Final

import torch
from PIL import Image

from storage.named_images import PillowImages

PHOTOGRAPHS: Final = ("photographs:train", "photographs:test")

_NAMES: Final = ("china", "flower")
_STRIPS: Final = 5
# Patches overlap inside a cell and never cross into another; whole cells are train or test.
_CELL: Final = 32
_PATCH: Final = 16
_STRIDE: Final = 8
_TEST_EVERY: Final = 5


def open_photographs(name: str) -> PillowImages:
    """Return 3,780 patches of 16 x 16 pixels to train on or 900 to test on, in 10 classes.

    Args:
        name: ``photographs:train`` or ``photographs:test``, every fifth cell of a strip.
    """
    # Imported here: scikit-learn takes a second to load, which only its own images are worth.
    from sklearn.datasets import load_sample_image

    patches: list[Image.Image] = []
    labels: list[int] = []
    for number, photograph in enumerate(_NAMES):
        whole = Image.fromarray(load_sample_image(f"{photograph}.jpg"))
        for strip in range(_STRIPS):
            found = _patches_of_strip(whole, strip, is_test=name == "photographs:test")
            patches += found
            labels += [number * _STRIPS + strip] * len(found)
    names = [f"{photograph} {strip + 1}" for photograph in _NAMES for strip in range(_STRIPS)]
    return PillowImages(name, lambda row: patches[row], torch.tensor(labels), names)


def _patches_of_strip(whole: Image.Image, strip: int, *, is_test: bool) -> list[Image.Image]:
    width = whole.width // _STRIPS
    cells = [
        (left, top)
        for top in range(0, whole.height - _CELL + 1, _CELL)
        for left in range(strip * width, (strip + 1) * width - _CELL + 1, _CELL)
    ]
    offsets = range(0, _CELL - _PATCH + 1, _STRIDE)
    return [
        whole.crop((left + dx, top + dy, left + dx + _PATCH, top + dy + _PATCH))
        for number, (left, top) in enumerate(cells)
        if (number % _TEST_EVERY == _TEST_EVERY // 2) == is_test
        for dy in offsets
        for dx in offsets
    ]
