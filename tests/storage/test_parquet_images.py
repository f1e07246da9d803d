import io
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from storage.blobs import open_blobs
from storage.commit import commit, read_manifest
from storage.datasets import open_dataset
from storage.errors import BlobMissingError, DatasetError, DigestMismatchError
from storage.image_dataset import ImageDataset
from storage.location import Location
from tests.storage.image_files import parquet_bytes, picture, pixels_of, pngs
from tests.storage.s3_requests import downloads, recorded_requests


def opened(location: Location, **files: bytes) -> ImageDataset:
    blobs = open_blobs(location)
    for name, data in files.items():
        blobs.put(f"{name}.parquet", data)
    return open_dataset(str(location), image_size=4)


def expected_pixels(numbers: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.stack([pixels_of(picture(number)) for number in numbers]))


@pytest.mark.parametrize("is_plain", [False, True])
@pytest.mark.parametrize("image_column", ["image", "img"])
@pytest.mark.parametrize("label_column", ["label", "labels", "fine_label"])
def test_usual_columns_are_found(
    tmp_path_location: Location, is_plain: bool, image_column: str, label_column: str
) -> None:
    data = parquet_bytes(
        pngs(4), [0, 1, 1, 0], image_column=image_column, label_column=label_column,
        is_plain=is_plain,
    )  # fmt: skip
    dataset = opened(tmp_path_location, one=data)
    assert dataset.labels.tolist() == [0, 1, 1, 0]
    assert torch.equal(dataset.read([3, 0]), expected_pixels([3, 0]))


def test_unusual_columns_are_found_by_their_declared_type(tmp_path_location: Location) -> None:
    data = parquet_bytes(
        pngs(2), [0, 1], image_column="photo", label_column="species", class_names=["a", "b"]
    )
    assert opened(tmp_path_location, one=data).class_names == ["a", "b"]


def test_file_folder_and_pattern_are_opened(location: Location) -> None:
    blobs, names = open_blobs(location), ["cat", "dog"]
    images = pngs(10)
    blobs.put("part-0.parquet", parquet_bytes(images[:4], [0, 1, 0, 1], class_names=names))
    blobs.put("part-1.parquet", parquet_bytes(images[4:], [1] * 6, class_names=names))
    blobs.put("notes.txt", b"not data")
    whole = open_dataset(str(location), image_size=4)
    assert whole.class_names == names
    assert whole.labels.tolist() == [0, 1, 0, 1, 1, 1, 1, 1, 1, 1]
    assert whole.rows.tolist() == whole.index.tolist() == list(range(10))
    order = [9, 0, 4, 3, 3]
    assert torch.equal(whole.read(order), expected_pixels(order))
    for name, num_images in (("part-0.parquet", 4), ("*-0.parquet", 4), ("part-*", 10)):
        assert len(open_dataset(str(location / name), image_size=4)) == num_images


def test_committed_dataset_is_opened_and_checked(
    location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "b.parquet": parquet_bytes(pngs(4)[2:], [0, 1], index=[7, 5]),
        "a.parquet": parquet_bytes(pngs(2), [0, 1], index=[3, 2]),
        "report.json": b"{}",
    }
    commit(location, parts, kind="dataset", description={})
    open_blobs(location).put("left-by-a-crash.parquet", b"never listed")
    dataset = open_dataset(str(location), image_size=4)
    assert dataset.index.tolist() == [3, 2, 7, 5]
    assert dataset.rows.tolist() == [0, 1, 2, 3]
    assert torch.equal(dataset.read([0, 1, 2, 3]), expected_pixels([0, 1, 2, 3]))

    path = read_manifest(location).parts["a.parquet"].path
    flipped = bytearray(parts["a.parquet"])
    flipped[len(flipped) // 2] ^= 1
    open_blobs(location).put(path, bytes(flipped))
    monkeypatch.setenv("RINGFENCE_CACHE", str(tmp_path / "empty"))
    with pytest.raises(DigestMismatchError, match=path):
        open_dataset(str(location), image_size=4)


def test_commit_without_parquet_is_refused(tmp_path_location: Location) -> None:
    commit(tmp_path_location, {"model.safetensors": b""}, kind="model", description={})
    with pytest.raises(DatasetError, match=r"is a committed model with the parts model\.safet"):
        open_dataset(str(tmp_path_location), image_size=4)


def test_row_groups_are_forgotten_when_memory_is_short(tmp_path_location: Location) -> None:
    opened(tmp_path_location, one=parquet_bytes(pngs(12), [0, 1] * 6))
    dataset = open_dataset(str(tmp_path_location), image_size=4, cache_bytes=0)
    for order in ([11, 0, 5], [5, 11, 0], list(range(12))):
        assert torch.equal(dataset.read(order), expected_pixels(order))
    assert len(dataset._source._groups._kept) == 1  # type: ignore[attr-defined]


ORDERS = st.lists(st.lists(st.integers(0, 11), max_size=14), max_size=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=ORDERS, hints=ORDERS, cache_bytes=st.sampled_from([0, 300, 600, 2**20]))
def test_images_are_the_same_in_any_order_with_any_hint_and_any_memory(
    tmp_path_location: Location, orders: list[list[int]], hints: list[list[int]], cache_bytes: int
) -> None:
    blobs = open_blobs(tmp_path_location)
    if not blobs.list():
        for name, numbers in (("a", slice(0, 5)), ("b", slice(5, 12))):
            images = pngs(12)[numbers]
            blobs.put(
                f"{name}.parquet", parquet_bytes(images, [0, 1, 0, 1, 0, 1, 0][: len(images)])
            )
    dataset = open_dataset(str(tmp_path_location), image_size=4, cache_bytes=cache_bytes)
    for order, hint in zip_longest(orders, hints, fillvalue=[]):
        dataset.prefetch(hint)
        assert torch.equal(dataset.read(order), expected_pixels([*order, 0])[: len(order)])


@pytest.mark.s3
def test_s3_is_asked_once_for_each_row_group(s3_location: Location) -> None:
    blobs = open_blobs(s3_location)
    blobs.put("a.parquet", parquet_bytes(pngs(12), [0, 1] * 6))
    blobs.put("b.parquet", parquet_bytes(pngs(12)[:6], [0, 1] * 3))
    with recorded_requests() as requests:
        dataset = open_dataset(str(s3_location), image_size=4)
        # The footer, and the labels of each row group.
        assert sorted(downloads(requests)) == ["a.parquet"] * 5 + ["b.parquet"] * 3
        requests.clear()
        for row in range(18):
            dataset.read([row])
        assert sorted(downloads(requests)) == ["a.parquet"] * 4 + ["b.parquet"] * 2
        is_listing = [request for request in requests if not request.range]
        assert len(is_listing) <= 6  # one for each thread that reads a file, at most
        requests.clear()
        dataset.read(range(18))
        assert not requests


@pytest.mark.s3
def test_vanished_file_is_named_where_its_images_are_read(s3_location: Location) -> None:
    blobs = open_blobs(s3_location)
    for name in ("a", "b"):
        blobs.put(f"{name}.parquet", parquet_bytes(pngs(3), [0, 1, 0]))
    dataset = open_dataset(str(s3_location), image_size=4)
    blobs.delete("b.parquet")
    dataset.prefetch(range(6))
    assert torch.equal(dataset.read([2, 0]), expected_pixels([2, 0]))
    for _ in range(2):
        with pytest.raises(BlobMissingError, match=r"b\.parquet.* does not exist"):
            dataset.read([4])


def test_class_without_images_keeps_its_number(tmp_path_location: Location) -> None:
    data = parquet_bytes(pngs(2), [0, 2], class_names=["a", "b", "c"])
    dataset = opened(tmp_path_location, one=data)
    assert (dataset.num_classes, dataset.labels.tolist()) == (3, [0, 2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"not parquet at all", r"one\.parquet cannot be read as Parquet"),
        (lambda: parquet_bytes(pngs(2), [0, 1])[:-9], r"one\.parquet cannot be read as Parquet"),
        (lambda: parquet_bytes([], pa.array([], pa.int64())), "holds no image"),
        (
            lambda: parquet_bytes(pngs(2), [0, 1], image_column="x"),
            r"has the columns x, label, wide; expected one of image, img and one of label",
        ),
        (
            lambda: parquet_bytes(pngs(2), [0, 1], label_column="y"),
            "has the columns image, y, wide",
        ),
        (lambda: parquet_bytes(pngs(3), [0, None, 1]), r"label of .*row 1 is null \(1 such"),
        (lambda: parquet_bytes(pngs(2), [0.0, 1.5]), r"row 0 is 0\.0, of type double"),
        (lambda: parquet_bytes(pngs(2), ["cat", "dog"]), "row 0 is 'cat', of type string"),
        (lambda: parquet_bytes(pngs(2), [True, False]), "row 0 is True, of type bool"),
        (
            lambda: parquet_bytes(pngs(2), pa.array([0, 2**63], pa.uint64())),
            "goes up to 9223372036854775808; expected values that fit int64",
        ),
        (lambda: parquet_bytes(pngs(4), [0, 1, 1, -1]), r"one\.parquet row 3 is -1, outside"),
        (
            lambda: parquet_bytes(pngs(2), [0, 9], class_names=["a", "b"]),
            r"one\.parquet row 1 is 9, outside the 2 classes",
        ),
        (lambda: parquet_bytes(pngs(2), [1, 1]), "has images of one class only, '1'"),
    ],
)
def test_unusable_file_is_refused_with_the_reason(
    tmp_path_location: Location, make: Callable[[], bytes], message: str
) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path_location, one=make())


def test_label_is_counted_in_its_own_file(tmp_path_location: Location) -> None:
    with pytest.raises(DatasetError, match=r"two\.parquet row 1 is -5"):
        opened(
            tmp_path_location,
            one=parquet_bytes(pngs(2), [0, 1]),
            two=parquet_bytes(pngs(2), [0, -5]),
        )


def test_image_that_is_no_image_column_is_refused(tmp_path_location: Location) -> None:
    table = pa.table({"image": ["a.png", "b.png"], "label": [0, 1]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with pytest.raises(DatasetError, match="has image of type string; expected encoded images"):
        opened(tmp_path_location, one=sink.getvalue().to_pybytes())


def test_missing_image_is_named_by_its_row(tmp_path_location: Location) -> None:
    dataset = opened(tmp_path_location, one=parquet_bytes([*pngs(4), None], [0, 1, 0, 1, 0]))
    with pytest.raises(DatasetError, match=r"one\.parquet row 4 has no image bytes.*embed"):
        dataset.read([4])


def test_corrupt_image_is_named_by_its_row_in_its_file(tmp_path_location: Location) -> None:
    good = parquet_bytes(pngs(2), [0, 1])
    dataset = opened(tmp_path_location, one=good, two=parquet_bytes([*pngs(1), b"bad"], [0, 1]))
    with pytest.raises(DatasetError, match=r"two\.parquet row 1 has 3 bytes"):
        dataset.read([3])


def test_files_of_several_splits_are_not_mixed(tmp_path_location: Location) -> None:
    data = parquet_bytes(pngs(2), [0, 1])
    blobs = open_blobs(tmp_path_location)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        blobs.put(f"{name}.parquet", data)
    with pytest.raises(DatasetError, match=r"several splits \(test, train\).*\*train\*\.parquet"):
        open_dataset(str(tmp_path_location), image_size=4)
    assert len(open_dataset(str(tmp_path_location / "*train*.parquet"), image_size=4)) == 4


def test_files_with_different_classes_are_not_mixed(tmp_path_location: Location) -> None:
    with pytest.raises(DatasetError, match=r"b\.parquet has the classes \['x', 'y'\], but a\.par"):
        opened(
            tmp_path_location,
            a=parquet_bytes(pngs(2), [0, 1], class_names=["cat", "dog"]),
            b=parquet_bytes(pngs(2), [0, 1], class_names=["x", "y"]),
        )


def test_folder_named_like_a_file_is_a_folder(location: Location) -> None:
    folder = location / "images.parquet"
    blobs = open_blobs(folder)
    blobs.put("part-00000.parquet", parquet_bytes(pngs(2), [0, 1]))
    blobs.put("_SUCCESS", b"")
    assert len(open_dataset(str(folder), image_size=4)) == 2


def test_index_column_of_another_meaning_is_left_alone(tmp_path_location: Location) -> None:
    blobs = open_blobs(tmp_path_location)
    table = pq.read_table(io.BytesIO(parquet_bytes(pngs(2), [0, 1])))
    sink = io.BytesIO()
    pq.write_table(table.append_column("index", pa.array(["a", "b"])), sink)
    blobs.put("one.parquet", sink.getvalue())
    dataset = open_dataset(str(tmp_path_location), image_size=4)
    assert dataset.index.tolist() == [0, 1]
