"""Labelled images by one name, wherever they are and however they are stored.

Guarantee: the same source, classes, ``max_images`` and seed give the same images in the same
order, on every machine; an image folder and a Parquet file of the same images differ in nothing
but their digest of how they are encoded.
"""

import os
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from storage.dataset_sources import open_source
from storage.errors import DatasetError
from storage.image_dataset import ImageDataset

__all__ = ["ImageDataset", "open_dataset", "validation_split"]

# A message that lists a thousand classes hides what it says.
_MOST_LISTED: Final = 20


def open_dataset(
    source: str | os.PathLike[str],
    *,
    image_size: int,
    classes: Sequence[int | str] | None = None,
    max_images: int | None = None,
    seed: int = 0,
    download: bool = False,
    root: str | None = None,
    cache_bytes: int = 2**31,
) -> ImageDataset:
    """Open labelled images; nothing is decoded before it is read.

    Args:
        source: one of
            a Parquet file, a folder of them, or a pattern such as ``data/train-*.parquet``;
            a folder with one folder of images for each class;
            the location of a committed dataset, whose bytes are checked against its manifest;
            any of these at ``s3://bucket/prefix``, of which this machine keeps what was
            committed, see :mod:`storage.cache`;
            ``torchvision/NAME:SPLIT``, for example ``torchvision/CIFAR10:train``;
            ``digits``, ``digits:train`` or ``digits:test``, and ``photographs:train`` or
            ``photographs:test``, which scikit-learn brings along.
        image_size: images come out square with this side in pixels, see
            :mod:`storage.image_decoding`.
        classes: numbers or names of the classes to keep; labels count in this order. ``None``
            keeps all, with the labels that the source has.
        max_images: the most images to keep, drawn so that classes are as even as they can be;
            ``None`` keeps all. A smaller draw is part of a larger one.
        seed: of that draw.
        download: fetch a torchvision dataset that ``root`` lacks.
        root: folder of torchvision's datasets; ``None`` is ``~/.cache/ringfence``.
        cache_bytes: the most memory to keep decoded images in (all of them or none), and the
            most to keep encoded ones in.

    Raises:
        DatasetError: there is no such dataset, or something in it is not usable.
        ValueError: an argument cannot work with any dataset.
    """
    _check(image_size=image_size, classes=classes, max_images=max_images, cache_bytes=cache_bytes)
    source = os.fspath(source)
    images = open_source(source, download=download, root=root, cache_bytes=cache_bytes)
    if not len(images.labels):
        raise DatasetError(f"{source} holds no image; expected at least one of each class")
    rows, labels, names = torch.arange(len(images.labels)), images.labels, images.class_names
    if classes is not None:
        numbers = [_class_number(c, images.class_names, labels, source) for c in classes]
        if len(set(numbers)) < len(numbers):
            raise ValueError(f"classes is {list(classes)}, which repeats one; expected each once")
        new_label = torch.full((len(names),), -1)
        new_label[numbers] = torch.arange(len(numbers))
        rows = torch.nonzero(new_label[labels] >= 0).flatten()
        labels, names = new_label[labels[rows]], [names[number] for number in numbers]
    present = torch.unique(labels).tolist()
    if len(present) < 2:
        raise DatasetError(
            f"{source} has images of one class only, {names[present[0]]!r};"
            " expected at least 2 classes to tell apart"
        )
    if max_images is not None and max_images < len(labels):
        chosen = _balanced_draw(labels, max_images=max_images, seed=seed)
        rows, labels = rows[chosen], labels[chosen]
    return ImageDataset(
        images,
        rows=rows,
        labels=labels,
        class_names=names,
        image_size=image_size,
        cache_bytes=cache_bytes,
    )


def validation_split(num_images: int, *, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices to train on and those to validate on: disjoint, complete, sorted.

    Args:
        num_images: how many there are to split, at least 2.
        share: fraction to validate on, 0 < share < 1; at least one image goes to either side.
        seed: equal seeds give equal splits.

    Raises:
        ValueError: nothing would be left for one of the sides.
    """
    if num_images < 2:
        raise ValueError(f"num_images is {num_images}, too few to split; expected at least 2")
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, which leaves one side empty; expected 0 < share < 1")
    num_validation = min(max(round(num_images * share), 1), num_images - 1)
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(seed))
    return order[num_validation:].sort().values, order[:num_validation].sort().values


def _check(
    *,
    image_size: int,
    classes: Sequence[int | str] | None,
    max_images: int | None,
    cache_bytes: int,
) -> None:
    if image_size < 1:
        raise ValueError(f"image_size is {image_size}; expected at least 1 pixel")
    if classes is not None and (isinstance(classes, str) or not classes):
        raise ValueError(
            f"classes is {classes!r}; expected a list of names or numbers, or None for all"
        )
    if max_images is not None and max_images < 2:
        raise ValueError(f"max_images is {max_images}; expected at least 2, or None for all")
    if cache_bytes < 0:
        raise ValueError(f"cache_bytes is {cache_bytes}; expected at least 0, which keeps nothing")


def _class_number(wanted: int | str, names: Sequence[str], labels: Tensor, source: str) -> int:
    present = torch.unique(labels).tolist()
    number = names.index(wanted) if wanted in names else wanted
    if number not in present:
        listed = ", ".join(f"{n} ({names[n]})" for n in present[:_MOST_LISTED])
        listed += f" and {len(present) - _MOST_LISTED} more" if len(present) > _MOST_LISTED else ""
        raise DatasetError(
            f"class {wanted!r} has no image in {source}; expected one of those present: {listed}"
        )
    return int(number)


def _balanced_draw(labels: Tensor, *, max_images: int, seed: int) -> Tensor:
    """Sorted indices of ``max_images`` images, as many of each class as of every other.

    A class with too few gives all it has, and the others share what is left.
    """
    present = torch.unique(labels).tolist()
    if max_images < len(present):
        raise ValueError(
            f"max_images is {max_images}, too few for one image of each of {len(present)} classes;"
            f" expected at least {len(present)}"
        )
    generator = torch.Generator().manual_seed(seed)
    turns, members = [], []
    for label in present:
        candidates = torch.nonzero(labels == label).flatten()
        members.append(candidates[torch.randperm(len(candidates), generator=generator)])
        turns.append(torch.arange(len(candidates)))
    # Classes take turns: all first picks come before all second picks, and so on. Stable, so
    # that within a turn the classes keep their order.
    order = torch.argsort(torch.cat(turns), stable=True)
    return torch.cat(members)[order[:max_images]].sort().values
