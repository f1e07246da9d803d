"""Purifications: what an appropriator does to every image once, the same way each time.

Each takes ``(B, C, H, W)`` uint8 with one channel or three, and gives back the same shape and
dtype, each image by itself. A perturbation is small and often of high frequency: what throws away
little of a picture can throw away all of it.
"""

import functools
import io

import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import v2


def jpeg(images: Tensor, *, quality: int) -> Tensor:
    """Compress as JPEG of ``quality``, 1 to 100, and decompress; colour at half the resolution.

    Source: Liu, Zhao, Larson, Image Shortcut Squeezing, 2023.
    """
    squeezed = torch.empty_like(images)
    # Pillow: torchvision has its own encoder, but gives it up (since 0.29).
    for index, image in enumerate(images):
        file = io.BytesIO()
        v2.functional.to_pil_image(image).save(file, "JPEG", quality=quality)
        squeezed[index] = v2.functional.pil_to_tensor(PIL.Image.open(file))
    return squeezed


def greyscale(images: Tensor) -> Tensor:
    """Give every channel the luminance. Source: Image Shortcut Squeezing."""
    grey: Tensor = v2.functional.rgb_to_grayscale(images, num_output_channels=images.shape[1])
    return grey


def bit_depth(images: Tensor, *, bits: int) -> Tensor:
    """Keep the highest ``bits`` of each value's 8. Source: Image Shortcut Squeezing."""
    posterized: Tensor = v2.functional.posterize(images, bits=bits)
    return posterized


def gaussian_blur(images: Tensor) -> Tensor:
    """Blur by a Gaussian of sigma 0.8 in a window of 3x3, mirrored at edges 2 pixels or longer."""
    blurred: Tensor = v2.functional.gaussian_blur(images, kernel_size=[3, 3], sigma=[0.8, 0.8])
    return blurred


def median_blur(images: Tensor) -> Tensor:
    """Median of each 3x3 neighbourhood, the edges continued outwards."""
    height, width = images.shape[-2:]
    rows = torch.arange(-1, height + 1).clamp(0, height - 1)
    columns = torch.arange(-1, width + 1).clamp(0, width - 1)
    padded = images[:, :, rows][..., columns]
    # Sort each column of three, once for the three windows it is in. Of nine values in such columns
    # the median is that of the greatest low, the median middle and the least high: nearly thirty
    # times as fast as `Tensor.median`.
    above, here, below = (padded[:, :, i : i + height] for i in range(3))
    low = torch.minimum(torch.minimum(above, here), below)
    middle = _median_of_three(above, here, below)
    high = torch.maximum(torch.maximum(above, here), below)
    lows, middles, highs = (
        [part[..., i : i + width] for i in range(3)] for part in (low, middle, high)
    )
    return _median_of_three(
        functools.reduce(torch.maximum, lows),
        _median_of_three(*middles),
        functools.reduce(torch.minimum, highs),
    )


def _median_of_three(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.maximum(torch.minimum(a, b), torch.minimum(torch.maximum(a, b), c))


def resize_half(images: Tensor) -> Tensor:
    """Half the height and width, rounded up, and back again; bilinear."""
    height, width = images.shape[-2:]
    # In floats: torch's resizing of bytes is another algorithm on other processors, and fails on
    # images of 2x2.
    half = v2.functional.resize(images.float(), [-(-height // 2), -(-width // 2)], antialias=True)
    whole: Tensor = v2.functional.resize(half, [height, width], antialias=True)
    return whole.round().to(torch.uint8)
