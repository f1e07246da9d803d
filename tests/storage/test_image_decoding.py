import io
import struct
import warnings
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.errors import DatasetError
from storage.image_decoding import decode_image
from tests.storage.image_files import picture, to_bytes


def decode(data: bytes, image_size: int = 4) -> np.ndarray:
    return decode_image(data, image_size=image_size, name="photos.parquet row 7")


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_image_of_the_right_size_keeps_its_pixels(file_format: str) -> None:
    image = picture(1)
    options = {"lossless": True} if file_format == "WEBP" else {}
    assert np.array_equal(decode(to_bytes(image, file_format, **options)), np.asarray(image))


@given(width=st.integers(1, 40), height=st.integers(1, 40), size=st.integers(1, 20))
def test_any_size_becomes_the_square_asked_for(width: int, height: int, size: int) -> None:
    image = Image.new("RGB", (width, height), (10, 200, 30))
    pixels = decode(to_bytes(image), size)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 200, 30)).all()


@pytest.mark.parametrize("is_wide", [True, False])
def test_longer_side_is_cut_at_both_ends(is_wide: bool) -> None:
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:, 4:8] = picture(2)
    pixels = pixels if is_wide else pixels.transpose(1, 0, 2)
    expected = np.asarray(picture(2))
    expected = expected if is_wide else expected.transpose(1, 0, 2)
    assert np.array_equal(decode(to_bytes(Image.fromarray(np.ascontiguousarray(pixels)))), expected)


def test_shrinking_averages_instead_of_picking() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    pixels = decode(to_bytes(Image.fromarray(board)))
    # Picking pixels would give 0 or 255 everywhere; the mean of a chess board is 127.5.
    assert abs(pixels.astype(int) - 127).max() <= 1


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("I;16", (4, 4), 65535), (255, 255, 255)),
        (Image.new("I;16", (4, 4), 257 * 80), (80, 80, 80)),
        (Image.new("LA", (4, 4), (77, 255)), (77, 77, 77)),
        (Image.new("LA", (4, 4), (77, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 255)), (9, 8, 7)),
        (Image.new("RGBA", (4, 4), (9, 8, 7, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),  # 255 * (1 - 51 / 255)
        (Image.new("RGB", (4, 4), (1, 2, 3)).convert("P"), (0, 0, 0)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else str(value[0]),
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    pixels = decode(to_bytes(image))
    assert (pixels == expected).all(), pixels[0, 0]


def test_transparent_palette_entry_becomes_white() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 250, 20, 20])
    image.putpixel((0, 0), 0)
    for data in (to_bytes(image, transparency=0), to_bytes(image, "GIF", transparency=0)):
        pixels = decode(data)
        assert tuple(pixels[0, 0]) == (255, 255, 255)
        assert tuple(pixels[1, 1]) == (250, 20, 20)


def test_transparent_colour_of_rgb_becomes_white() -> None:
    image = picture(3)
    colour = image.getpixel((0, 0))
    pixels = decode(to_bytes(image, transparency=colour))
    assert tuple(pixels[0, 0]) == (255, 255, 255)
    assert np.array_equal(pixels[1:], np.asarray(image)[1:])


def test_sixteen_bit_grey_is_scaled_and_rounded() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    pixels = decode(to_bytes(Image.fromarray(values)), 256)
    assert np.array_equal(pixels[..., 0], np.rint(values / 257).astype(np.uint8))


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    red, green, blue = decode(to_bytes(image, "TIFF"))[0, 0]
    assert red < 5
    assert min(green, blue) > 250


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_photo_taken_sideways_is_turned_upright(file_format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture's top is on the right
    image = Image.new("RGB", (16, 16), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 16))
    pixels = decode(to_bytes(image, file_format, exif=exif), 16)
    assert pixels[2].min() > 200
    assert pixels[13].max() < 55


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("L", (4, 4), level) for level in (10, 200)]
    data = to_bytes(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (decode(data) == 10).all()


@pytest.mark.parametrize(
    ("mode", "level", "message"),
    [("F", 0.5, "has float pixels"), ("I", 70000, "has integer pixels from 70000 to 70000")],
)
def test_pixels_without_a_range_are_refused(mode: str, level: float, message: str) -> None:
    data = to_bytes(Image.new(mode, (4, 4), level), "TIFF")
    with pytest.raises(DatasetError, match=f"photos.parquet row 7 {message}.*8-bit or 16-bit"):
        decode(data)


def _broken_header() -> bytes:
    return to_bytes(picture(1))[:20]


def _lost_half() -> bytes:
    return to_bytes(picture(1, size=64))[:-4000]


def _lost_jpeg_tail() -> bytes:
    data = to_bytes(picture(1, size=64), "JPEG")
    return data[: len(data) // 2]


def _bad_checksum() -> bytes:
    data = bytearray(to_bytes(picture(1)))
    data[29] ^= 1  # in the header chunk, whose checksum then no longer holds
    return bytes(data)


def _bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return (
        b"\x89PNG\r\n\x1a\n"
        + struct.pack(">I", len(header))
        + chunk
        + struct.pack(">I", zlib.crc32(chunk))
    )


def _program() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n"


@pytest.mark.parametrize(
    "make",
    [bytes, _program, _broken_header, _lost_half, _lost_jpeg_tail, _bad_checksum, _bomb],
    ids=["empty", "program", "header", "half", "jpeg", "checksum", "bomb"],
)
def test_damaged_image_is_refused_by_name(make: Callable[[], bytes]) -> None:
    data = make()
    message = rf"photos\.parquet row 7 has {len(data)} bytes that do not (decode|begin)"
    with pytest.raises(DatasetError, match=message):
        decode(data)


# The same examples every time: which damage a decoder survives is the decoder's affair.
@settings(derandomize=True)
@given(data=st.data())
def test_any_damage_is_an_image_or_a_dataset_error(data: st.DataObject) -> None:
    good = bytearray(
        to_bytes(picture(4), data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "BMP"])))
    )
    for _ in range(3):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata and goes on
        try:
            pixels = decode(bytes(good))
        except DatasetError:
            return
    assert pixels.shape == (4, 4, 3)


def test_memory_view_is_read_without_being_changed() -> None:
    data = to_bytes(picture(5))
    assert np.array_equal(decode(memoryview(data)), decode(data))
    assert Image.open(io.BytesIO(data)).size == (4, 4)
