"""Images at the size and in the mode they were made in, and back to a lossless file.

Guarantee: pixels come out as they are stored, and :func:`png_bytes` gives back exactly the pixels
it was given. The number of channels says the mode: 1 is L (grey), 2 is LA, 3 is RGB and 4 is RGBA.

What PNG cannot hold as it is, or no one can change pixel by pixel, is converted first:

- black and white (1) becomes L: a pixel of one bit has no neighbouring level to change to;
- a palette (P, PA) becomes RGB or RGBA: a palette's numbers are names of colours, not levels;
- a colour or palette entry that is declared transparent becomes an alpha channel, so that a pixel
  which changes does not turn opaque with it;
- premultiplied alpha (La, RGBa) becomes LA, RGBA, and CMYK, YCbCr, HSV and LAB become RGB: PNG
  has none of them.

More than 8 bits a channel are refused: cutting them down is a change that the maker of the images
decides on, not the reader. Only in PPM and JPEG 2000 does 16-bit colour pass, cut down by Pillow,
which gives no sign of it there.
"""

import io
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from storage.errors import DatasetError
from storage.image_decoding import opened_image, upright

_MODES: Final = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_GREY: Final = ("1", "L", "LA", "La")
# Measured on CIFAR-10 images and on photographs of 640 x 427, as they are and changed by up to 2
# levels: at 32 x 32 all levels cost the same 0.15 ms. Photographs become 0.52 and 0.61 of their raw
# size, within 3 % of level 9, in 2/3 of level 6's time; level 1 writes up to 9 % more in about
# half of level 4's time, and making a changed image takes far longer than either.
_COMPRESS_LEVEL: Final = 4


def original_from_bytes(data: bytes | memoryview, *, name: str) -> Tensor:
    """Return the pixels of one encoded image; of an animation, its first frame.

    Args:
        data: a whole file, see :func:`storage.image_decoding.decode_image`.
        name: which image this is; only named in errors.

    Returns:
        See :func:`original_pixels`.

    Raises:
        DatasetError: ``data`` is no image, is damaged, or has more than 8 bits a channel.
    """
    with opened_image(data, name=name) as image:
        return original_pixels(image, name=name)


def original_pixels(image: Image.Image, *, name: str) -> Tensor:
    """Return ``image`` upright, at its own size, with the channels of its own mode.

    Args:
        image: any Pillow image; not modified.
        name: which image this is; only named in errors.

    Returns:
        ``(C, H, W)`` uint8, contiguous, the caller's own.

    Raises:
        DatasetError: the pixels have more than 8 bits a channel.
    """
    _require_8_bit(image, name)
    image = upright(image)
    mode = "L" if image.mode in _GREY else "RGB"
    mode += "A" if image.has_transparency_data else ""
    pixels = np.array(image if image.mode == mode else image.convert(mode))
    return torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels).transpose(2, 0, 1)))


def png_bytes(pixels: Tensor) -> bytes:
    """Return ``pixels`` as a PNG file without metadata; the same pixels give the same bytes.

    Args:
        pixels: ``(C, H, W)`` uint8 with 1 to 4 channels, at least one pixel.

    Raises:
        ValueError: ``pixels`` has another shape or type.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) not in _MODES:
        raise ValueError(
            f"pixels have shape {tuple(pixels.shape)} and dtype {pixels.dtype};"
            " expected (C, H, W) uint8 with 1 to 4 channels"
        )
    if not pixels.numel():
        raise ValueError(
            f"pixels have shape {tuple(pixels.shape)}, which PNG cannot hold;"
            " expected at least one pixel"
        )
    channels_last = np.ascontiguousarray(pixels.cpu().numpy().transpose(1, 2, 0))
    # Pillow takes one grey channel without its axis, and reads the mode off the others.
    image = Image.fromarray(channels_last[..., 0] if len(pixels) == 1 else channels_last)
    assert image.mode == _MODES[len(pixels)]
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=_COMPRESS_LEVEL)
    return file.getvalue()


def _require_8_bit(image: Image.Image, name: str) -> None:
    wide = [m for m in _stored_modes(image) if m.startswith("I") or m == "F" or ";16" in m]
    if wide:
        raise DatasetError(
            f"{name} has pixels of mode {wide[0]}, on which a change counted in 8-bit levels is"
            " not defined; expected 8 bits a channel (convert it to 8 bits first)"
        )


def _stored_modes(image: Image.Image) -> list[str]:
    # Pillow keeps only the upper half of 16-bit colour, and shows the mode in the file nowhere but
    # in the arguments of the decoder that is still to run.
    arguments = [tile[3] for tile in getattr(image, "tile", ())]
    return [image.mode, *(str(a[0] if isinstance(a, tuple) and a else a) for a in arguments)]
