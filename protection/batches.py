"""Image sets and the batches drawn from them.

Shapes: ``B`` batch, ``N`` images in a set, ``C H W`` an image.
"""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from protection.seeds import generator


class Images(Protocol):
    """A labelled image set read by index; whether memory, disk or S3 backs it is not seen."""

    @property
    def labels(self) -> Tensor:
        """``(N,)`` int64 in ``[0, num_classes)``."""
        ...

    @property
    def num_classes(self) -> int:
        """Number of classes, whether or not each has an image."""
        ...

    def __len__(self) -> int:
        """Return N."""
        ...

    def read(self, indices: Tensor) -> Tensor:
        """``(B, C, H, W)`` uint8 images at ``indices``, ``(B,)`` int64."""
        ...


class TensorImages:
    """An image set held in memory."""

    def __init__(self, images: Tensor, labels: Tensor, *, num_classes: int) -> None:
        """Hold ``images``, ``(N, C, H, W)`` uint8, and their ``labels``, ``(N,)`` int64."""
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; expected torch.uint8 pixels in 0..255")
        if labels.shape != images.shape[:1]:
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}, but there are {len(images)} images; "
                f"expected ({len(images)},)"
            )
        self.images, self.labels, self.num_classes = images, labels, num_classes

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def read(self, indices: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` uint8 images."""
        return self.images[indices]


class Batch(NamedTuple):
    """Images ``(B, C, H, W)`` float in [0, 1] and their labels, on the model's device.

    Labels are ``(B,)`` int64, or ``(B, K)`` float probabilities where images were mixed;
    `torch.nn.functional.cross_entropy` takes both.
    """

    images: Tensor
    labels: Tensor


def read_batch(images: Images, indices: Tensor, *, device: torch.device) -> Batch:
    """Batch of the images at ``indices``; pixels become floats on the device, not before."""
    pixels = images.read(indices).to(device, non_blocking=True)
    labels = images.labels[indices].to(device, non_blocking=True)
    return Batch(pixels.float().div_(255), labels)


class EpochStream:
    """Endless stream of indices, epoch after epoch, each epoch in a new order.

    Position ``t`` of the stream is a function of the key alone, so a resumed run reads on exactly
    where it stopped. A batch
    that reaches past the end of an epoch continues in the next: none is short and none is dropped.
    """

    def __init__(self, num_images: int, *key: int | str) -> None:
        """Stream over ``[0, num_images)``, its order named by ``key``."""
        if num_images < 1:
            raise ValueError(
                "num_images is 0, so there is nothing to draw from; expected at least 1"
            )
        self._num_images, self._key = num_images, key
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.int64)

    def at(self, start: int, count: int) -> Tensor:
        """``(count,)`` int64 indices at positions ``start ... start + count - 1``."""
        pieces: list[Tensor] = []
        while count > 0:
            epoch, offset = divmod(start, self._num_images)
            if epoch != self._epoch:
                self._epoch = epoch
                rng = generator(*self._key, "epoch", epoch)
                self._order = torch.randperm(self._num_images, generator=rng)
            piece = self._order[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return torch.cat(pieces)
