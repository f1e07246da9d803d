"""Detection of protected images in what is stored."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from ray_jobs import detection
from ray_jobs.detection import detect_protected
from ray_jobs.errors import JobError
from storage.datasets import ImageDataset, open_dataset
from tests.storage.image_files import parquet_bytes, to_bytes


def smooth(number: int, *, size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    """Number ``number`` of many different images without detail."""
    coarse = np.random.default_rng(number).integers(30, 226, (3, 3, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).convert(mode)


def noisy(image: Image.Image, number: int) -> Image.Image:
    pixels = np.asarray(image).astype(int)
    change = np.random.default_rng(1000 + number).integers(-4, 5, pixels.shape)
    if image.mode == "RGBA":
        change[..., 3] = 0
    return Image.fromarray((pixels + change).clip(0, 255).astype(np.uint8), image.mode)


def written(images: list[Image.Image], path: Path, *, index: list[int]) -> ImageDataset:
    labels = pa.array([number % 2 for number in index])
    path.write_bytes(parquet_bytes([to_bytes(image) for image in images], labels, index=index))
    return open_dataset(path, image_size=8)


def two_sets(
    tmp_path: Path, *, num_images: int = 120, num_protected: int = 120
) -> tuple[ImageDataset, ImageDataset]:
    """Protected and clean images of several sizes and modes; the protected in reverse order."""
    shapes = [((40, 36), "RGB"), ((33, 50), "L"), ((36, 40), "RGBA")]
    clean = [
        smooth(number, size=size, mode=mode)
        for number, (size, mode) in zip(range(num_images), shapes * num_images, strict=False)
    ]
    protected = [
        noisy(image, number) if number < num_protected else image
        for number, image in enumerate(clean)
    ]
    backwards = list(range(num_images))[::-1]
    return (
        written(
            [protected[number] for number in backwards],
            tmp_path / "protected.parquet",
            index=backwards,
        ),
        written(clean, tmp_path / "clean.parquet", index=list(range(num_images))),
    )


def test_noise_is_detected_in_images_of_any_size_mode_and_order(tmp_path: Path) -> None:
    protected, clean = two_sets(tmp_path)
    found = detect_protected(protected, clean)
    assert found["spectrum"].balanced_accuracy > 0.9
    assert detect_protected(protected, clean) == found


def test_pairs_are_of_one_image_of_those_that_changed_from_the_middle(tmp_path: Path) -> None:
    protected, clean = two_sets(tmp_path, num_images=300, num_protected=50)
    pairs = list(detection._changed_pairs(protected, clean))
    assert len(pairs) == 50
    for after, before in pairs:
        assert after.shape == before.shape == (3, 32, 32)
        assert 0 < int((after.long() - before.long()).abs().max()) <= 4
    assert detect_protected(protected, clean) is None  # too few to say


def test_no_more_images_are_read_than_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detection, "_NUM_PAIRS", 30)
    monkeypatch.setattr(detection, "_CHUNK_SIZE", 20)
    read: list[int] = []
    originals = ImageDataset.originals

    def counting(self: ImageDataset, indices: Tensor) -> list[Tensor]:
        read.append(len(indices))
        return originals(self, indices)

    monkeypatch.setattr(ImageDataset, "originals", counting)
    protected, clean = two_sets(tmp_path)
    assert len(list(detection._changed_pairs(protected, clean))) == 30
    assert read == 2 * [20, 20]
    monkeypatch.setattr(detection, "_MOST_READ", 10)
    assert len(list(detection._changed_pairs(protected, clean))) == 10


def test_images_smaller_than_the_square_are_compared_by_what_all_have(tmp_path: Path) -> None:
    clean = [smooth(number, size=(9 + number % 3, 12)) for number in range(110)]
    index = list(range(110))
    changed = [noisy(image, number) for number, image in enumerate(clean)]
    found = detect_protected(
        written(changed, tmp_path / "protected.parquet", index=index),
        written(clean, tmp_path / "clean.parquet", index=index),
    )
    assert found is not None


def test_other_images_are_refused(tmp_path: Path) -> None:
    images = [smooth(number, size=(8, 8)) for number in range(4)]
    protected = written(images, tmp_path / "protected.parquet", index=[0, 1, 2, 3])
    clean = written(images, tmp_path / "clean.parquet", index=[0, 1, 2, 5])
    with pytest.raises(JobError, match="index 5 is not there exactly once; expected the same"):
        detect_protected(protected, clean)


def test_grey_images_have_three_equal_channels_and_alpha_is_left_out() -> None:
    grey = torch.arange(8, dtype=torch.uint8).reshape(2, 2, 2)
    assert torch.equal(detection._colours(grey), grey[[0, 0, 0]])
    rgba = torch.arange(16, dtype=torch.uint8).reshape(4, 2, 2)
    assert torch.equal(detection._colours(rgba), rgba[:3])
