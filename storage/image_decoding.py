"""Encoded images of any kind as square 8-bit RGB pixels.

Guarantee: the same bytes give the same pixels, an image that already has the size asked for keeps
its pixels untouched, and what cannot be decoded is an error that says which image it was.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from storage.errors import DatasetError

Pixels: TypeAlias = NDArray[np.uint8]

# What Pillow's decoders raise on damaged files; SyntaxError is how its PNG reader says "broken".
_DAMAGED: Final = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Named one by one: Pillow also reads formats that start other programs (EPS) or that nobody keeps
# photographs in, and what is decoded here may come from anybody.
_FORMATS: Final = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
# Pillow shrinks by whole factors down to this multiple of the target first; at 3 the result is
# indistinguishable from resampling every pixel, at a fraction of the time.
_REDUCING_GAP: Final = 3.0
_WHITE: Final = (255, 255, 255, 255)


def decode_image(data: bytes | memoryview, *, image_size: int, name: str) -> Pixels:
    """Return the pixels of one encoded image; of an animation, its first frame.

    Args:
        data: a whole file: JPEG, PNG, WebP, GIF, BMP, TIFF, PPM or JPEG 2000.
        image_size: side of the square result in pixels.
        name: which image this is; only named in errors.

    Returns:
        ``(image_size, image_size, 3)``, red first.

    Raises:
        DatasetError: ``data`` is no image, is damaged, or has no defined range of values.
    """
    with opened_image(data, name=name) as image:
        return square_pixels(image, image_size=image_size, name=name)


@contextmanager
def opened_image(data: bytes | memoryview, *, name: str) -> Iterator[Image.Image]:
    """The image in ``data``, whose pixels Pillow decodes when the block first uses them.

    Args:
        data: see :func:`decode_image`.
        name: which image this is; only named in errors.

    Raises:
        DatasetError: ``data`` is no image, or turns out damaged inside the block.
    """
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise DatasetError(
            f"{name} has {len(data)} bytes that do not begin like an image;"
            f" expected a complete file in one of the formats {', '.join(_FORMATS)}"
        ) from error
    except _DAMAGED as error:
        raise DatasetError(
            f"{name} has {len(data)} bytes that do not decode as an image"
            f" ({type(error).__name__}: {error}); expected a complete image file"
        ) from error


def upright(image: Image.Image) -> Image.Image:
    """Return ``image`` turned as its camera was held; itself where it is upright already."""
    # Looked up first, because exif_transpose copies also what is upright already.
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def square_pixels(image: Image.Image, *, image_size: int, name: str) -> Pixels:
    """Return ``image`` upright, as 8-bit RGB, its shorter side resized and its centre cut out.

    Args:
        image: any Pillow image; not modified.
        image_size: side of the square result in pixels.
        name: which image this is; only named in errors.

    Returns:
        ``(image_size, image_size, 3)``, red first.

    Raises:
        DatasetError: the pixels are floats or wide integers, whose range no format defines.
    """
    rgb = _to_rgb(upright(image), name)
    if rgb.size != (image_size, image_size):
        side = min(rgb.size)
        left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
        # One resampling of the central square; BILINEAR widens its support when it shrinks, so
        # fine patterns are averaged rather than aliased.
        rgb = rgb.resize(
            (image_size, image_size),
            Image.Resampling.BILINEAR,
            box=(left, top, left + side, top + side),
            reducing_gap=_REDUCING_GAP,
        )
    return np.asarray(rgb)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _from_16_bit(image, name).convert("RGB")
    if image.mode == "F":
        raise DatasetError(
            f"{name} has float pixels, and no format says what range they are in;"
            " expected 8-bit or 16-bit pixels (convert it first)"
        )
    if image.has_transparency_data:
        # White: cut-out objects and line art are drawn to be seen on a page. The colour stored
        # under a fully transparent pixel is arbitrary, so dropping alpha would show noise.
        upper = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), upper).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, name: str) -> Image.Image:
    """8-bit grey of 16-bit grey: 65535 becomes 255, where Pillow's own ``convert`` clips at 255."""
    values = np.asarray(image)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        raise DatasetError(
            f"{name} has integer pixels from {low} to {high}, and no format says what range they"
            " are in; expected 8-bit or 16-bit pixels (convert it first)"
        )
    # 65535 = 255 * 257, so this is exact at both ends; 128 rounds to the nearest level.
    return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
