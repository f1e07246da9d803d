"""How much protection changed images that people look at, image by image.

The measures take two stacks of 8-bit images, ``(B, C, H, W)`` uint8 of equal shape, and return
``(B,)``. They compute in float64: the differences that matter here are a few levels of 255.
"""

import statistics
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

_DATA_RANGE: Final = 255
# Of a stack: of 32-pixel images, 2**17 take 0.4 of the time of one at a time, and 2**19 0.5;
# photographs in float64 would take gigabytes.
_VALUES_AT_ONCE: Final = 2**17
# Wang et al. 2004, section III.
_WINDOW_SIZE: Final = 11
_WINDOW_SIGMA: Final = 1.5
_K1: Final = 0.01
_K2: Final = 0.03


class Changes(NamedTuple):
    """What protection did to each image of a list; see the function of each name."""

    max_levels: Tensor
    """``(N,)`` int64."""
    psnr: Tensor
    """``(N,)`` float64, dB."""
    ssim: Tensor
    """``(N,)`` float64."""


def measure_changes(protected: Sequence[Tensor], clean: Sequence[Tensor]) -> Changes:
    """Measure every image of a list; they may differ in size.

    Args:
        protected: at least one image, ``(C, H, W)`` uint8 each.
        clean: the same images before, in the same order.

    Raises:
        ValueError: the lists differ in length, or an image of a pair in shape.
    """
    if not len(protected) == len(clean) > 0:
        raise ValueError(
            f"protected has {len(protected)} images and clean {len(clean)}; expected the same "
            "images, at least one"
        )
    for after, before in zip(protected, clean, strict=True):
        _check(after[None], before[None])
    changes = Changes(
        torch.empty(len(clean), dtype=torch.int64),
        torch.empty(len(clean), dtype=torch.float64),
        torch.empty(len(clean), dtype=torch.float64),
    )
    for numbers in _stackable(clean):
        after, before = (torch.stack([image[n] for n in numbers]) for image in (protected, clean))
        for measured, measure in zip(changes, (max_change_levels, psnr, ssim), strict=True):
            measured[numbers] = measure(after, before)
    return changes


def _stackable(images: Sequence[Tensor]) -> Iterator[list[int]]:
    """Numbers of ``images`` of equal shape, no more at a time than the cache likes."""
    by_shape: dict[torch.Size, list[int]] = {}
    for number, image in enumerate(images):
        by_shape.setdefault(image.shape, []).append(number)
    for shape, numbers in by_shape.items():
        at_once = max(1, _VALUES_AT_ONCE // shape.numel())
        for first in range(0, len(numbers), at_once):
            yield numbers[first : first + at_once]


def lowest_and_median(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """``values``' minimum and median, under names that begin with ``name``; None of nothing."""
    if not values:
        return {f"{name}_min": None, f"{name}_median": None}
    return {f"{name}_min": min(values), f"{name}_median": statistics.median(values)}


def max_change_levels(protected: Tensor, clean: Tensor) -> Tensor:
    """Greatest absolute change of any value, int64 in 8-bit levels."""
    _check(protected, clean)
    return (protected.long() - clean.long()).abs().flatten(1).amax(dim=1)


def psnr(protected: Tensor, clean: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, float64; infinite where nothing changed."""
    _check(protected, clean)
    squared_error = (protected.double() - clean.double()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(_DATA_RANGE**2 / squared_error)


def ssim(protected: Tensor, clean: Tensor) -> Tensor:
    """Structural similarity, float64 in [-1, 1]; 1 where nothing changed.

    Args:
        protected: ``(B, C, H, W)`` uint8.
        clean: likewise. Images smaller than 11 pixels in a dimension are compared with the largest
            window of odd side that fits, so their values compare with each other only.

    Source: Wang, Bovik, Sheikh, Simoncelli, Image Quality Assessment, 2004, equation 13: a Gaussian
        window with sigma 1.5 at every place where it fits whole; the mean over places.
    Differs: the paper compares luminance; this is the mean over channels.
    """
    _check(protected, clean)
    x, y = protected.double(), clean.double()
    window = _window(x)
    mean_x, mean_y = _blur(x, window), _blur(y, window)
    variance_x = _blur(x * x, window) - mean_x**2
    variance_y = _blur(y * y, window) - mean_y**2
    covariance = _blur(x * y, window) - mean_x * mean_y
    c1, c2 = (_K1 * _DATA_RANGE) ** 2, (_K2 * _DATA_RANGE) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * contrast_structure).flatten(1).mean(dim=1)


def _window(images: Tensor) -> Tensor:
    """One-dimensional Gaussian of the side that fits ``images``; sums to 1."""
    smallest = min(_WINDOW_SIZE, *images.shape[-2:])
    radius = (smallest - 1) // 2
    offsets = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    weights = torch.exp(-offsets.square() / (2 * _WINDOW_SIGMA**2))
    return weights / weights.sum()


def _blur(images: Tensor, window: Tensor) -> Tensor:
    """Weighted mean under the square of ``window``, at every place where it fits whole."""
    num_channels = images.shape[1]
    kernel = window.expand(num_channels, 1, 1, -1)
    # A Gaussian square is a row times a column: 22 products a pixel in place of 121.
    rows = F.conv2d(images, kernel, groups=num_channels)
    return F.conv2d(rows, kernel.transpose(2, 3), groups=num_channels)


def _check(protected: Tensor, clean: Tensor) -> None:
    for name, images in (("protected", protected), ("clean", clean)):
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(images.shape)} and dtype {images.dtype}; expected "
                "(B, C, H, W) torch.uint8"
            )
    if protected.shape != clean.shape:
        raise ValueError(
            f"protected has shape {tuple(protected.shape)}, but clean has {tuple(clean.shape)}; "
            "expected the same images before and after"
        )
