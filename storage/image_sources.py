"""Where labelled images come from: what every source offers, and folders of class folders.

Guarantee: labels are checked when a source is opened, so a wrong one is an error that names its
row before anything is trained on it.
"""

from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from storage.blobs import BlobStore
from storage.errors import DatasetError
from storage.image_decoding import Pixels, decode_image
from storage.location import Location
from storage.original_images import original_from_bytes

IMAGE_SUFFIXES: Final = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm"),
)
# Without class names the highest label says how many classes there are; beyond this, it is not a
# class number but an identifier or a missing-value mark.
_MAX_UNNAMED_CLASSES: Final = 2**20


class ImageSource(Protocol):
    """Labelled images in a fixed order, numbered from 0."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64 in ``[0, len(class_names))``."""

    @property
    def class_names(self) -> list[str]:
        """One name for each label."""

    @property
    def index(self) -> Tensor:
        """``(N,)`` int64: the number that binds each image to the one it was made from."""

    def prefetch(self, rows: Sequence[int]) -> None:
        """Begin to fetch what reading the images ``rows`` will need, where that pays; a hint."""

    def encoded(self, row: int) -> bytes | memoryview:
        """The bytes that define image ``row``, as they are stored."""

    def pixels(self, row: int, *, image_size: int) -> Pixels:
        """``(image_size, image_size, 3)`` pixels of image ``row``."""

    def original(self, row: int) -> Tensor:
        """``(C, H, W)`` uint8 pixels of image ``row`` at its own size and in its own mode."""

    def path(self, row: int) -> str | None:
        """The name that the source keeps for image ``row``; ``None`` where it keeps none."""

    def columns(self, rows: Sequence[int]) -> pa.Table | None:
        """All that the source knows of these rows beyond image, path, label and index.

        Returns:
            One row for each of ``rows``, in that order; ``None`` where there is no such column.
            The schema says what each column means, where the source says so.

        Raises:
            DatasetError: the columns cannot stand beside image, label and index in one table.
        """


class FolderImages:
    """One folder for each class, images at any depth inside: torchvision's ``ImageFolder`` layout.

    Classes are numbered in the sorted order of their folders' names, as torchvision does.
    """

    def __init__(self, location: Location, blobs: BlobStore, names: Sequence[str]) -> None:
        """Take the images among ``names``.

        Args:
            location: the folder of class folders; only named in errors.
            blobs: the blobs of ``location``.
            names: names of all of them, sorted.

        Raises:
            DatasetError: there is no class folder, or one without an image.
        """
        images: dict[str, list[str]] = {name: [] for name in _class_folders(location, names)}
        if not images:
            raise DatasetError(
                f"{location} has neither *.parquet files nor class folders;"
                " expected images as in folder/cat/1.png"
            )
        for name in names:
            folder, slash, _ = name.partition("/")
            if slash and folder in images and PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES:
                images[folder].append(name)
        for folder, members in images.items():
            if not members:
                raise DatasetError(
                    f"{location / folder} holds no image, so class {folder!r} would be empty;"
                    f" expected files with {', '.join(IMAGE_SUFFIXES)} (or remove the folder)"
                )
        self._location = location
        self._blobs = blobs
        self.class_names = sorted(images)
        self._names = [name for folder in self.class_names for name in images[folder]]
        counts = [len(images[folder]) for folder in self.class_names]
        self.labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        self.index = torch.arange(len(self._names))

    def prefetch(self, rows: Sequence[int]) -> None:
        """See :meth:`ImageSource.prefetch`; does nothing, each image is a file of its own."""

    def encoded(self, row: int) -> bytes:
        """See :meth:`ImageSource.encoded`."""
        return self._blobs.get(self._names[row])

    def pixels(self, row: int, *, image_size: int) -> Pixels:
        """See :meth:`ImageSource.pixels`."""
        return decode_image(self.encoded(row), image_size=image_size, name=self._row_name(row))

    def original(self, row: int) -> Tensor:
        """See :meth:`ImageSource.original`."""
        return original_from_bytes(self.encoded(row), name=self._row_name(row))

    def path(self, row: int) -> str:
        """See :meth:`ImageSource.path`; below the folder of class folders."""
        return self._names[row]

    def columns(self, rows: Sequence[int]) -> None:
        """See :meth:`ImageSource.columns`; a folder has none."""

    def _row_name(self, row: int) -> str:
        return str(self._location / self._names[row])


def check_labels(
    labels: np.ndarray, class_names: Sequence[str] | None, *, name: Callable[[int], str]
) -> list[str]:
    """Return the class names of ``labels``, made up from their numbers where there are none.

    Args:
        labels: ``(N,)`` of any dtype.
        class_names: one for each class, or ``None`` where the source has none.
        name: what errors call image ``row``.

    Raises:
        DatasetError: a label is no integer, negative, or beyond the last class.
    """
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        value = labels[:1].tolist()
        raise DatasetError(
            f"label of {name(0)} is {value[0] if value else value!r}, not an integer;"
            " expected one class number for each image"
        )
    num_classes = _MAX_UNNAMED_CLASSES if class_names is None else len(class_names)
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if wrong.size:
        row = int(wrong[0])
        raise DatasetError(
            f"label of {name(row)} is {int(labels[row])}, outside the {num_classes} classes"
            f" ({wrong.size} such rows); expected 0 <= label < {num_classes}"
            " (drop rows without a known class first)"
        )
    if class_names is not None:
        return list(class_names)
    return [str(number) for number in range(int(labels.max(initial=-1)) + 1)]


def _class_folders(location: Location, names: Sequence[str]) -> list[str]:
    # On disk an empty folder is seen too: skipping it would number the classes differently in
    # the training and the test folder.
    folders = {name.partition("/")[0] for name in names if "/" in name}
    if location.is_local:
        folders |= {entry.name for entry in location.path.iterdir() if entry.is_dir()}
    # Hidden folders are those of tools, such as .ipynb_checkpoints.
    return sorted(folder for folder in folders if not folder.startswith("."))
