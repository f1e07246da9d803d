import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from storage.errors import DatasetError
from storage.original_images import original_from_bytes, original_pixels, png_bytes
from tests.storage.image_files import picture, to_bytes


def original(data: bytes) -> Tensor:
    return original_from_bytes(data, name="photos.parquet row 7")


def noise(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 23), st.integers(1, 37))


@settings(deadline=None)
@given(shape=shapes, seed=st.integers(0, 2**16))
def test_png_gives_back_the_same_pixels(shape: tuple[int, int, int], seed: int) -> None:
    pixels = noise(shape, seed)
    data = png_bytes(pixels)
    assert torch.equal(original(data), pixels)
    assert png_bytes(pixels.flip(2).flip(2).clone()) == data
    # Neither does the layout in memory matter.
    assert png_bytes(pixels.permute(1, 2, 0).contiguous().permute(2, 0, 1)) == data


@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
def test_channels_say_the_mode(num_channels: int) -> None:
    data = png_bytes(noise((num_channels, 5, 3)))
    image = Image.open(io.BytesIO(data))
    assert image.mode == {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[num_channels]
    assert image.size == (3, 5)
    assert image.info == {}  # no metadata


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.zeros(5, 4, 4, dtype=torch.uint8), r"shape \(5, 4, 4\)"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"shape \(4, 4\)"),
        (torch.zeros(3, 4, 4), "dtype torch.float32; expected .* uint8 with 1 to 4 channels"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), r"\(3, 0, 4\), which PNG cannot hold"),
    ],
)
def test_png_of_anything_else_is_refused(pixels: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        png_bytes(pixels)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (3, 2), 1), [255]),
        (Image.new("L", (3, 2), 77), [77]),
        (Image.new("LA", (3, 2), (77, 9)), [77, 9]),
        (Image.new("LA", (3, 2), (255, 51)).convert("La"), [255, 51]),
        (Image.new("RGB", (3, 2), (1, 2, 3)), [1, 2, 3]),
        (Image.new("RGBA", (3, 2), (9, 8, 7, 0)), [9, 8, 7, 0]),
        (Image.new("RGBA", (3, 2), (255, 0, 255, 51)).convert("RGBa"), [255, 0, 255, 51]),
        (Image.new("P", (3, 2), 9), [9, 9, 9]),
        (Image.new("PA", (3, 2), (9, 51)), [9, 9, 9, 51]),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), [255, 0, 0]),
        (Image.new("YCbCr", (3, 2), (128, 128, 128)), [128, 128, 128]),
        (Image.new("HSV", (3, 2), (0, 255, 200)), [200, 0, 0]),
        (Image.new("LAB", (3, 2), (0, 128, 128)), [0, 0, 0]),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_has_its_channels(image: Image.Image, expected: list[int]) -> None:
    if image.mode in ("P", "PA"):
        image.putpalette([level for level in range(256) for _ in range(3)])
    pixels = original_pixels(image, name="x")
    assert pixels.shape == (len(expected), 2, 3)
    assert pixels.is_contiguous()
    difference = (pixels - torch.tensor(expected)[:, None, None]).abs().max()
    # LAB becomes RGB by way of a colour profile, which rounds.
    assert difference <= (1 if image.mode == "LAB" else 0), pixels[:, 0, 0]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "P"])
def test_transparent_colour_becomes_an_alpha_channel(mode: str) -> None:
    image = picture(3).convert(mode)
    colour = image.getpixel((0, 0))
    pixels = original(to_bytes(image, transparency=colour))
    opaque = original(to_bytes(image))
    assert len(pixels) == len(opaque) + 1
    assert torch.equal(pixels[:-1], opaque)
    stored = np.atleast_3d(np.array(image.convert("L") if mode == "1" else image))
    is_colour = (stored == colour).all(axis=2)
    assert np.array_equal(pixels[-1], np.where(is_colour, 0, 255))


def test_transparent_entry_of_a_gif_becomes_an_alpha_channel() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 20, 20])
    image.putpixel((0, 0), 0)
    pixels = original(to_bytes(image, "GIF", transparency=0))
    assert pixels[3].tolist() == [[0, 255, 255, 255], *[[255] * 4] * 3]
    assert pixels[:, 1, 1].tolist() == [250, 20, 20, 255]


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_photo_taken_sideways_is_turned_upright(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture's top is on the right
    image = Image.new("L", (32, 16), 0)
    image.paste(255, (0, 0, 16, 16))
    pixels = original(to_bytes(image, file_format, exif=exif))
    assert pixels.shape == (1, 32, 16)
    assert pixels[0, :15].min() > 200
    assert pixels[0, 17:].max() < 55


def test_result_is_the_callers_own() -> None:
    image = picture(1)
    expected = original_pixels(image, name="x").clone()
    original_pixels(image, name="x").zero_()
    assert torch.equal(original_pixels(image, name="x"), expected)


def _wide_png(colour_type: int, num_channels: int) -> bytes:
    """A PNG of 16 bits a channel; Pillow writes no colour of that depth."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 1, 1, 16, colour_type, 0, 0, 0)
    row = zlib.compress(bytes(1 + 2 * num_channels))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize(
    ("data", "mode"),
    [
        (to_bytes(Image.new("I;16", (4, 4), 9)), "I;16"),
        (to_bytes(Image.new("I", (4, 4), 9), "TIFF"), "I"),
        (to_bytes(Image.new("F", (4, 4), 0.5), "TIFF"), "F"),
        (_wide_png(4, 2), "LA;16B"),
        (_wide_png(2, 3), "RGB;16B"),
        (_wide_png(6, 4), "RGBA;16B"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_more_than_eight_bits_are_refused(data: bytes, mode: str) -> None:
    message = rf"photos\.parquet row 7 has pixels of mode {mode}, .*\(convert it to 8 bits first\)"
    with pytest.raises(DatasetError, match=message):
        original(data)


@pytest.mark.parametrize("data", [b"", b"%!PS-Adobe-3.0", to_bytes(picture(1, size=64))[:-4000]])
def test_damaged_image_is_refused_by_name(data: bytes) -> None:
    message = rf"photos\.parquet row 7 has {len(data)} bytes that do not (decode|begin)"
    with pytest.raises(DatasetError, match=message):
        original(data)
