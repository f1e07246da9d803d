"""A map-style dataset of square 8-bit images that decodes each image at most once if it can.

Guarantee: an index always gives the same pixels and label, whether they came from the source or
from the cache. Where images are to be changed and written again, the same index also gives the
original, its name and all that the source has beside it.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from storage.errors import DatasetError
from storage.image_sources import ImageSource

_T = TypeVar("_T")


class ImageDataset:
    """Images and labels by index. Made by :func:`storage.datasets.open_dataset`.

    Safe to read from several threads. A process that forks gets its own copy of the cache, so a
    loader with worker processes decodes again in each of them.
    """

    labels: Tensor
    """``(N,)`` int64 in ``[0, num_classes)``."""
    class_names: list[str]
    """One name for each class, in the order of the labels."""
    rows: Tensor
    """``(N,)`` int64: row of each image in the source it was opened from."""
    index: Tensor
    """``(N,)`` int64: the source's own number of each image where it has one, else ``rows``."""
    image_size: int
    """Height and width in pixels."""

    def __init__(
        self,
        source: ImageSource,
        *,
        rows: Tensor,
        labels: Tensor,
        class_names: Sequence[str],
        image_size: int,
        cache_bytes: int,
    ) -> None:
        """Show the images ``rows`` of ``source`` under ``labels``.

        Args:
            source: where images are decoded from.
            rows: ``(N,)`` int64.
            labels: ``(N,)`` int64 in ``[0, len(class_names))``.
            class_names: one for each class.
            image_size: side of the images in pixels.
            cache_bytes: decoded images are kept if all of them fit into this.
        """
        self.labels = labels
        self.class_names = list(class_names)
        self.rows = rows
        self.index = source.index[rows]
        self.image_size = image_size
        self._source = source
        self._source_rows = rows.tolist()
        self._positions = torch.arange(len(rows))
        self._cache: Tensor | None = None
        if len(rows) * 3 * image_size**2 <= cache_bytes:
            # Not zeroed: pages of images that are never read are never given memory.
            self._cache = torch.empty((len(rows), 3, image_size, image_size), dtype=torch.uint8)
        self._is_cached = np.zeros(len(rows), dtype=np.bool_)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._positions)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Image ``(3, H, W)`` uint8 and label; raises ``IndexError`` beyond the end."""
        return self.read([index])[0], int(self.labels[index])

    def read(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Return a batch of images, decoding those that were not read before.

        Args:
            indices: ``(B,)`` integers in ``[-N, N)``, in any order, with repeats.

        Returns:
            ``(B, 3, image_size, image_size)`` uint8, the caller's own.

        Raises:
            IndexError: an index is beyond the end.
            DatasetError: an image cannot be decoded; names the image.
        """
        positions = self._positions[self._checked(indices)]
        if self._cache is None:
            shape = len(positions), 3, self.image_size, self.image_size
            images = torch.empty(shape, dtype=torch.uint8)
            # In row order, so that neighbours in one Parquet row group are read together.
            order = torch.argsort(positions)
            self._prefetch(positions[order])
            for place, position in zip(order.tolist(), positions[order].tolist(), strict=True):
                self._decode(position, images.numpy()[place])
            return images
        pixels = self._cache.numpy()
        for position in self._prefetch(torch.unique(positions)).tolist():
            self._decode(position, pixels[position])
            # After the pixels: another thread must not take them before they are there.
            self._is_cached[position] = True
        return self._cache[positions]

    def prefetch(self, indices: Tensor | Sequence[int]) -> None:
        """Begin to fetch what :meth:`read` will need; returns at once.

        A hint: images are the same without it. It pays on S3 in random order; of whoever reads in
        row order it goes ahead anyway.

        Args:
            indices: as for :meth:`read`, in the order in which they will be read.
        """
        self._prefetch(self._positions[self._checked(indices)])

    def originals(self, indices: Tensor | Sequence[int]) -> list[Tensor]:
        """Return images at their own size and in their own mode, see ``original_images``.

        Args:
            indices: as for :meth:`read`.

        Returns:
            ``B`` tensors ``(C, H, W)`` uint8, the caller's own, in the order of ``indices``;
            decoded anew by each call.

        Raises:
            IndexError: an index is beyond the end.
            DatasetError: an image cannot be decoded or is not of 8 bits; names the image.
        """
        self._source.prefetch(self.rows[self._checked(indices)].sort().values.tolist())
        return self._in_row_order(indices, self._source.original)

    def paths(self, indices: Tensor | Sequence[int]) -> list[str | None]:
        """Return the name that the source keeps for each image; ``None`` where it keeps none.

        Args:
            indices: as for :meth:`read`.
        """
        return self._in_row_order(indices, self._source.path)

    def columns(self, indices: Tensor | Sequence[int]) -> pa.Table | None:
        """Return the source's columns beside image, label and index; ``None`` if it has none.

        Args:
            indices: as for :meth:`read`.

        Raises:
            IndexError: an index is beyond the end.
            DatasetError: a column has a name that a written dataset needs, or the files of the
                source differ in their columns.
        """
        return self._source.columns(self.rows[self._checked(indices)].tolist())

    def require_unique_index(self) -> None:
        """Refuse two images with one ``index``, which is to bind a changed image to its original.

        Raises:
            DatasetError: names the first image whose number an earlier one has, and that one.
        """
        order = torch.argsort(self.index, stable=True)
        is_repeat = self.index[order].diff() == 0
        if is_repeat.any():
            second = int(order[1:][is_repeat].min())
            first = int(torch.nonzero(self.index == self.index[second])[0])
            raise DatasetError(
                f"index of image {second} is {int(self.index[second])}, which image {first} has"
                " too, and index binds every changed image to its original; expected different"
                " numbers (number the rows anew, or drop the column)"
            )

    def subset(self, indices: Tensor | Sequence[int]) -> "ImageDataset":
        """A view of some images, in the order given, that shares the decoded pixels.

        Args:
            indices: ``(B,)`` integers in ``[-N, N)``.

        Raises:
            IndexError: an index is beyond the end.
        """
        chosen = self._checked(indices)
        view = copy.copy(self)
        view.labels = self.labels[chosen]
        view.rows = self.rows[chosen]
        view.index = self.index[chosen]
        view._positions = self._positions[chosen]
        return view

    def digest(self) -> str:
        """SHA-256, in hexadecimal, of class names, labels and encoded images in this order.

        It depends neither on ``image_size`` nor on how images are spread over files. Reads each.
        """
        sha256 = hashlib.sha256(json.dumps(self.class_names).encode())
        self._prefetch(self._positions)
        for position, label in zip(self._positions.tolist(), self.labels.tolist(), strict=True):
            data = self._source.encoded(self._source_rows[position])
            # With its length in front, no image's end can pass for another's beginning.
            sha256.update(b"\n%d %d\n" % (label, len(data)))
            sha256.update(data)
        return sha256.hexdigest()

    def _in_row_order(self, indices: Tensor | Sequence[int], get: Callable[[int], _T]) -> list[_T]:
        rows = self.rows[self._checked(indices)].tolist()
        order = sorted(range(len(rows)), key=rows.__getitem__)
        found = {place: get(rows[place]) for place in order}
        return [found[place] for place in range(len(rows))]

    def _prefetch(self, positions: Tensor) -> Tensor:
        """Begin to fetch those that were not decoded before; return them."""
        missing = positions[~torch.from_numpy(self._is_cached)[positions]]
        self._source.prefetch([self._source_rows[position] for position in missing.tolist()])
        return missing

    def _decode(self, position: int, target: NDArray[np.uint8]) -> None:
        """Write one image to ``target``, ``(3, H, W)``."""
        pixels = self._source.pixels(self._source_rows[position], image_size=self.image_size)
        target[...] = pixels.transpose(2, 0, 1)

    def _checked(self, indices: Tensor | Sequence[int]) -> Tensor:
        chosen = torch.as_tensor(indices)
        if not len(chosen):
            return torch.empty(0, dtype=torch.int64)
        if chosen.ndim != 1 or chosen.dtype == torch.bool or chosen.is_floating_point():
            raise ValueError(
                f"indices have shape {tuple(chosen.shape)} and dtype {chosen.dtype};"
                " expected one dimension of integers"
            )
        outside = chosen[(chosen < -len(self)) | (chosen >= len(self))]
        if len(outside):
            raise IndexError(
                f"index is {int(outside[0])}, and there are {len(self)} images;"
                f" expected -{len(self)} <= index < {len(self)}"
            )
        return chosen.to(torch.int64)
