"""Pictures of what protection did: lines of images, each under its name."""

import io
from collections.abc import Sequence
from typing import Final

import torch
from PIL import Image, ImageDraw
from torch import Tensor

PREVIEW_PART: Final = "preview.png"

_TILE: Final = 112
_GAP: Final = 4
_CAPTION: Final = 96
_PAPER: Final = (255, 255, 255)
_INK: Final = (0, 0, 0)


def picture_strip(clean: Sequence[Tensor], protected: Sequence[Tensor], *, levels: int) -> bytes:
    """PNG file with a column for each image and three rows.

    Args:
        clean: at least one image, ``(C, H, W)`` uint8 with 1 to 4 channels.
        protected: the same images, protected.
        levels: the budget; a change by so many 8-bit levels shows as full contrast.
    """
    gain = 127 / levels
    differences = [
        ((after.float() - before.float()) * gain + 127.5).clamp(0, 255).to(torch.uint8)
        for after, before in zip(protected, clean, strict=True)
    ]
    rows = [
        ("clean", [_picture(image) for image in clean]),
        ("protected", [_picture(image) for image in protected]),
        # Alpha does not change, and as a difference it would hide the colours.
        (f"difference\nx {gain:.0f}", [_picture(_colours(image)) for image in differences]),
    ]
    return _drawn(rows)


def picture_rows(rows: Sequence[tuple[str, Sequence[Tensor]]]) -> bytes:
    """PNG file with a line for each of ``rows``: its caption, then its images.

    Args:
        rows: at least one, each of as many images ``(C, H, W)`` uint8 with 1 to 4 channels.
    """
    return _drawn([(caption, [_picture(image) for image in images]) for caption, images in rows])


def _drawn(rows: Sequence[tuple[str, Sequence[Image.Image]]]) -> bytes:
    step, columns = _TILE + _GAP, max(len(pictures) for _, pictures in rows)
    strip = Image.new("RGB", (_CAPTION + step * columns, step * len(rows)), _PAPER)
    draw = ImageDraw.Draw(strip)
    for row, (caption, pictures) in enumerate(rows):
        draw.text((_GAP, row * step + _TILE // 2), caption, fill=_INK, font_size=14, anchor="lm")
        for column, picture in enumerate(pictures):
            strip.paste(picture, (_CAPTION + column * step, row * step))
    buffer = io.BytesIO()
    strip.save(buffer, "PNG")
    return buffer.getvalue()


def _colours(image: Tensor) -> Tensor:
    return image[: 1 if len(image) < 3 else 3]


def _picture(image: Tensor) -> Image.Image:
    """``image`` over white, in the square of a tile."""
    mode = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[len(image)]
    height, width = image.shape[1:]
    data = image.permute(1, 2, 0).contiguous().numpy().tobytes()
    picture = Image.frombytes(mode, (width, height), data).convert("RGBA")
    scale = _TILE / max(height, width)
    # Small images show their pixels, large ones are averaged.
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    tile = Image.new("RGBA", (_TILE, _TILE), (*_PAPER, 255))
    tile.alpha_composite(picture.resize(size, resample))
    return tile.convert("RGB")
