"""Datasets that are known by name: scikit-learn's digits, and whatever torchvision offers.

Guarantee: nothing is downloaded unless the caller asks for it, and the digits' split is the same
for everybody.
"""

import difflib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storage.errors import DatasetError
from storage.image_decoding import Pixels, square_pixels
from storage.image_sources import check_labels
from storage.original_images import original_pixels

DEFAULT_ROOT: Final = "~/.cache/ringfence"
DIGITS: Final = ("digits", "digits:train", "digits:test")
TORCHVISION_PREFIX: Final = "torchvision/"

# Every fifth image of a class: 20 % of each, without a random generator that may change.
_DIGITS_TEST_EVERY: Final = 5
# Where torchvision's classes keep their labels; reading them there decodes no image.
_LABEL_ATTRIBUTES: Final = ("targets", "labels", "_labels")


class PillowImages:
    """Images that a function returns already decoded."""

    def __init__(
        self, name: str, load: Callable[[int], Image.Image], labels: Tensor, class_names: list[str]
    ) -> None:
        """Take image ``row`` from ``load(row)``; ``name`` is what errors call the whole."""
        self._name = name
        self._load = load
        self.labels = labels
        self.class_names = class_names
        self.index = torch.arange(len(labels))

    def prefetch(self, rows: Sequence[int]) -> None:
        """See :meth:`ImageSource.prefetch`; does nothing, the images are there."""

    def encoded(self, row: int) -> bytes:
        """The decoded pixels with their mode and size: there is no encoded form."""
        image = self._load(row)
        return f"{image.mode} {image.width} {image.height}\n".encode() + image.tobytes()

    def pixels(self, row: int, *, image_size: int) -> Pixels:
        """See :meth:`ImageSource.pixels`."""
        return square_pixels(self._load(row), image_size=image_size, name=self._row_name(row))

    def original(self, row: int) -> Tensor:
        """See :meth:`ImageSource.original`."""
        return original_pixels(self._load(row), name=self._row_name(row))

    def path(self, row: int) -> None:
        """See :meth:`ImageSource.path`; a decoded image has none."""

    def columns(self, rows: Sequence[int]) -> None:
        """See :meth:`ImageSource.columns`; there are none."""

    def _row_name(self, row: int) -> str:
        return f"{self._name} row {row}"


def open_digits(name: str) -> PillowImages:
    """Return scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels, 10 classes.

    Args:
        name: ``digits:test`` is every fifth image of each class, in the order of the file;
            ``digits:train`` is the other 80 %; ``digits`` is all of them.
    """
    # Imported here: scikit-learn takes a second to load, which only these digits are worth.
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = data.target.astype(np.int64)
    rank_in_class = np.empty_like(labels)
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        rank_in_class[members] = np.arange(len(members))
    is_test = rank_in_class % _DIGITS_TEST_EVERY == _DIGITS_TEST_EVERY - 1
    chosen = {"digits": is_test | True, "digits:train": ~is_test, "digits:test": is_test}[name]
    # Pixels are 0..16; +0.5 rounds, where a bare cast would round down.
    images = (data.images[chosen] * (255 / 16) + 0.5).astype(np.uint8)
    return PillowImages(
        name,
        lambda row: Image.fromarray(images[row]),
        torch.from_numpy(labels[chosen]),
        [str(digit) for digit in range(10)],
    )


def torchvision_names() -> list[str]:
    """Names of the datasets that torchvision has."""
    from torchvision import datasets

    return sorted(set(datasets.__all__) - {"FakeData", "DatasetFolder", "ImageFolder"})


def open_torchvision(source: str, *, download: bool, root: str | None) -> PillowImages:
    """Return a torchvision dataset of labelled images.

    Args:
        source: ``torchvision/NAME:SPLIT``, for example ``torchvision/CIFAR10:train``.
        download: fetch it if ``root`` lacks it.
        root: folder that holds it; ``None`` is ``~/.cache/ringfence``.

    Raises:
        DatasetError: torchvision has no such dataset or split, or ``root`` lacks it.
    """
    # Imported here: torchvision takes seconds to load, which only its own datasets are worth.
    from torchvision import datasets

    name, _, split = source.removeprefix(TORCHVISION_PREFIX).partition(":")
    if name not in torchvision_names() or not split:
        close = difflib.get_close_matches(name, torchvision_names(), n=1) or ["CIFAR10"]
        raise DatasetError(
            f"dataset is {source!r}, which names no dataset and split of torchvision; expected"
            f" torchvision/NAME:SPLIT, for example torchvision/{close[0]}:{split or 'train'}"
        )
    make = getattr(datasets, name)
    folder = Path(root or DEFAULT_ROOT).expanduser()
    options = _split_options(make, source, split)
    if "download" in inspect.signature(make).parameters:
        options["download"] = download
    elif download:
        raise DatasetError(
            f"dataset is {source!r}, which torchvision does not download; expected it in {folder}"
            " already (see torchvision's documentation for where to get it)"
        )
    try:
        dataset = make(str(folder), **options)
    # What torchvision raises for missing files, a failed download, an unknown split and a missing
    # optional package, in this order.
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        raise DatasetError(
            f"dataset is {source!r}, which torchvision cannot open in {folder}"
            f" ({type(error).__name__}: {error}); expected an existing split whose files are there"
            " (download=True fetches them)"
        ) from error
    labels = _labels(dataset)
    names = getattr(dataset, "classes", None)
    if not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        names = None
    names = check_labels(labels, names, name=lambda row: f"{source} row {row}")
    return PillowImages(
        source, lambda row: dataset[row][0], torch.from_numpy(labels.astype(np.int64)), names
    )


def _split_options(make: type, source: str, split: str) -> dict[str, object]:
    parameters = inspect.signature(make).parameters
    if "split" in parameters:
        return {"split": split}
    if "train" in parameters and split in ("train", "test"):
        return {"train": split == "train"}
    raise DatasetError(
        f"dataset is {source!r}, which has no split {split!r};"
        + (" expected train or test" if "train" in parameters else " expected one with splits")
    )


def _labels(dataset: Sequence[tuple[Image.Image, object]]) -> np.ndarray:
    for attribute in _LABEL_ATTRIBUTES:
        labels = getattr(dataset, attribute, None)
        if labels is not None and len(labels) == len(dataset):
            return np.asarray(labels)
    return np.asarray([dataset[row][1] for row in range(len(dataset))])
