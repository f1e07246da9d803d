"""Folders of class folders, on disk and on S3."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from storage.blobs import open_blobs
from storage.datasets import open_dataset
from storage.errors import DatasetError
from storage.image_sources import check_labels
from storage.location import Location
from tests.storage.image_files import picture, pixels_of, to_bytes


def fill(location: Location | Path, names: list[str]) -> None:
    blobs = open_blobs(location)
    for number, name in enumerate(names):
        blobs.put(name, to_bytes(picture(number)))


def test_folders_are_classes_in_sorted_order(location: Location) -> None:
    fill(location, ["dog/b.png", "dog/a.PNG", "cat/deep/er/x.png", "cat/notes.txt", "README.md"])
    dataset = open_dataset(str(location), image_size=4)
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.labels.tolist() == [0, 1, 1]
    expected = np.stack([pixels_of(picture(number)) for number in (2, 1, 0)])
    assert np.array_equal(dataset.read([0, 1, 2]).numpy(), expected)


def test_originals_keep_size_and_mode(tmp_path: Path) -> None:
    grey, wide = picture(0, size=5).convert("L"), picture(1, size=9).convert("RGBA")
    for name, image in (("a/grey.png", grey), ("b/deep/wide.png", wide)):
        open_blobs(tmp_path).put(name, to_bytes(image))
    dataset = open_dataset(tmp_path, image_size=4)
    first, second = dataset.originals([0, 1])
    assert np.array_equal(first[0], np.asarray(grey))
    assert np.array_equal(second.permute(1, 2, 0), np.asarray(wide))
    assert dataset.paths([1, 0]) == ["b/deep/wide.png", "a/grey.png"]
    assert dataset.columns([0, 1]) is None


def test_order_is_that_of_torchvision(tmp_path: Path) -> None:
    fill(tmp_path, [f"{c}/{n}.png" for c in ("b", "a", "B") for n in (10, 9, "z/1")])
    dataset, reference = open_dataset(tmp_path, image_size=4), ImageFolder(str(tmp_path))
    assert dataset.class_names == reference.classes
    assert dataset.labels.tolist() == reference.targets
    for (pixels, label), (image, expected_label) in zip(dataset, reference, strict=True):
        assert label == expected_label
        assert np.array_equal(pixels.numpy(), pixels_of(image))


def test_hidden_folders_are_not_classes(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png", "b/1.png", ".ipynb_checkpoints/1.png"])
    assert open_dataset(tmp_path, image_size=4).class_names == ["a", "b"]


def test_empty_class_folder_is_refused_by_name(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png", "b/1.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"/empty holds no image, so class 'empty'.*\.jpg"):
        open_dataset(tmp_path, image_size=4)


def test_class_folder_of_other_files_is_refused(location: Location) -> None:
    fill(location, ["a/1.png", "b/1.mp4"])
    with pytest.raises(DatasetError, match="holds no image, so class 'b' would be empty"):
        open_dataset(str(location), image_size=4)


def test_folder_without_class_folders_is_refused(location: Location) -> None:
    fill(location, ["1.png", "2.png"])
    with pytest.raises(DatasetError, match=r"neither \*\.parquet files nor class folders"):
        open_dataset(str(location), image_size=4)


def test_corrupt_image_is_named_by_its_path(location: Location) -> None:
    fill(location, ["a/1.png", "b/1.png"])
    open_blobs(location).put("b/broken.png", b"not an image")
    dataset = open_dataset(str(location), image_size=4)
    dataset.read([0, 1])
    with pytest.raises(DatasetError, match=r"b/broken\.png.* has 12 bytes that do not begin"):
        dataset.read([2])


def name(row: int) -> str:
    return f"x.parquet row {row}"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1, -1], r"x\.parquet row 2 is -1, outside the 3 classes \(2 such rows\)"),
        ([0, 3], r"row 1 is 3, outside the 3 classes.*0 <= label < 3"),
        ([0.5, 1.0], r"row 0 is 0\.5, not an integer"),
        (["cat", "dog"], "row 0 is 'cat', not an integer"),
        ([True, False], "row 0 is True, not an integer"),
        ([[0], [1]], r"row 0 is \[0\], not an integer"),
    ],
)
def test_wrong_label_is_refused_with_row_and_value(labels: list[object], message: str) -> None:
    with pytest.raises(DatasetError, match=f"label of .*{message}"):
        check_labels(np.array(labels), ["a", "b", "c"], name=name)


def test_unnamed_classes_are_named_by_number() -> None:
    assert check_labels(np.array([2, 0]), None, name=name) == ["0", "1", "2"]
    with pytest.raises(DatasetError, match="row 1 is 5000000, outside the 1048576 classes"):
        check_labels(np.array([0, 5_000_000]), None, name=name)


def test_image_is_decoded_once(tmp_path: Path) -> None:
    fill(tmp_path, ["a/1.png", "b/1.png"])
    dataset = open_dataset(tmp_path, image_size=4)
    uncached = open_dataset(tmp_path, image_size=4, cache_bytes=95)  # one byte short of both
    first = dataset.read([0, 1])
    assert torch.equal(uncached.read([0, 1]), first)
    (tmp_path / "a" / "1.png").unlink()
    assert torch.equal(dataset.read([0, 1]), first)
    with pytest.raises(Exception, match=r"a/1\.png does not exist"):
        uncached.read([0, 1])
