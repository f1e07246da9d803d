"""What stays beside an image: columns of a Parquet source, by row."""

import io
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage.blobs import open_blobs
from storage.datasets import open_dataset
from storage.errors import DatasetError
from storage.image_dataset import ImageDataset
from storage.location import Location
from storage.parquet_columns import features_of
from tests.storage.image_files import parquet_bytes, pngs

COARSE = {"_type": "ClassLabel", "names": ["small", "large"]}


def file_of(num_images: int, *, class_names: object = ("a", "b"), **options: Any) -> bytes:
    labels = [number % 2 for number in range(num_images)]
    return parquet_bytes(pngs(num_images), labels, class_names=class_names, **options)


def opened(location: Location, cache_bytes: int = 2**20, **files: bytes) -> ImageDataset:
    for name, data in files.items():
        open_blobs(location).put(f"{name}.parquet", data)
    return open_dataset(str(location), image_size=4, cache_bytes=cache_bytes)


CARRIED = {
    "caption": pa.array(["a", None, "c", "d", "e", "f", "g"]),
    "tags": pa.array([["x", "y"], [], None, ["z"], [None], [], ["w"]]),
    "box": pa.array([{"x": n, "y": [n / 2]} for n in range(7)]),
    "coarse": pa.array([0, 1, 1, 0, 0, 1, 0], pa.int16()),
    "text": pa.array(list("abcdefg"), pa.large_string()),
    "kind": pa.array(list("aabbaab")).dictionary_encode(),
    "image.width": pa.array(range(7)),
    "when": pa.array(range(7), pa.timestamp("ms", tz="UTC")),
    "nothing": pa.nulls(7),
}


@pytest.mark.parametrize("cache_bytes", [0, 2**20])
@pytest.mark.parametrize("order", [list(range(14)), [13, 0, 7, 7, 3, -1, 2], [5], []])
def test_rows_keep_their_columns(
    tmp_path_location: Location, cache_bytes: int, order: list[int]
) -> None:
    data = file_of(7, carried=CARRIED, features={"coarse": COARSE, "gone": COARSE})
    dataset = opened(tmp_path_location, cache_bytes, one=data, two=data)
    table = dataset.columns(order)
    assert table is not None
    whole = pa.concat_tables([pa.table(CARRIED)] * 2)
    assert table.schema == whole.schema
    assert features_of(table.schema) == {"coarse": COARSE}
    assert table.to_pylist() == [whole.slice(row % 14, 1).to_pylist()[0] for row in order]
    view = dataset.subset([9, 1, 4]).columns([2, 0])
    assert view is not None
    assert view["caption"].to_pylist() == ["e", "c"]


def test_only_the_row_groups_and_columns_needed_are_read(
    tmp_path_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = opened(tmp_path_location, one=file_of(9), two=file_of(9, image_column="img"))
    reads: list[tuple[int, list[str]]] = []
    read_row_group = pq.ParquetFile.read_row_group

    def counted(self: pq.ParquetFile, group: int, **options: Any) -> pa.Table:
        reads.append((group, options["columns"]))
        return read_row_group(self, group, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for first in (3, 4, 5):  # three images a group, so these rows are in two groups
        dataset.columns([first, first + 1])
    assert reads == [(1, ["wide"]), (2, ["wide"])]
    reads.clear()
    for row in range(18):
        dataset.originals([row])
    expected = [(group, [f"{name}.bytes"]) for name in ("image", "img") for group in range(3)]
    assert reads == expected
    reads.clear()
    assert dataset.paths([17, 0, 1]) == ["not-followed.png"] * 3
    assert reads == [(0, ["image.path"]), (2, ["img.path"])]


def test_source_without_other_columns_has_none(tmp_path_location: Location) -> None:
    dataset = opened(tmp_path_location, one=file_of(4, carried={}, index=[7, 6, 5, 4]))
    assert dataset.columns([0, 1]) is None


def test_paths_are_those_in_the_file(tmp_path_location: Location) -> None:
    paths = ["a/0.jpg", None, "2.png", ""]
    dataset = opened(tmp_path_location, one=file_of(4, paths=paths), two=file_of(2, is_plain=True))
    assert dataset.paths([5, 3, 2, 1, 0]) == [None, *paths[::-1]]


def test_column_order_of_the_first_file_holds(tmp_path_location: Location) -> None:
    one = file_of(2, carried={"a": [1, 2], "b": ["x", "y"]})
    two = file_of(2, carried={"b": ["z", "w"], "a": [3, 4]})
    table = opened(tmp_path_location, one=one, two=two).columns(range(4))
    assert table is not None
    assert table.to_pydict() == {"a": [1, 2, 3, 4], "b": ["x", "y", "z", "w"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carried": {}}, r"two\.parquet has column 'a' as None, but .*one.* has it as int64"),
        ({"carried": {"a": ["x"] * 2}}, "has column 'a' as string, but .* as int64"),
        ({"carried": {"a": [0, 1], "b": [0, 1]}}, "column 'b' as int64, but .* has it as None"),
        (
            {"features": {"a": COARSE}},
            r"column 'a' as int64 \{.*'large'\]\}, but .*one\.parquet has it as int64; expected",
        ),
    ],
)
def test_files_with_different_columns_are_not_mixed(
    tmp_path_location: Location, change: dict[str, object], message: str
) -> None:
    usual: dict[str, Any] = {"carried": {"a": [0, 1]}}
    dataset = opened(tmp_path_location, one=file_of(2, **usual), two=file_of(2, **usual | change))
    assert len(dataset.originals(range(4))) == 4  # only asking for columns is in vain
    with pytest.raises(DatasetError, match=message):
        dataset.columns([0])


def test_column_whose_name_is_needed_is_refused(tmp_path_location: Location) -> None:
    dataset = opened(tmp_path_location, one=file_of(2, carried={"index": ["a", "b"]}))
    message = r"one\.parquet has a column 'index' of type string, .*\(rename it\)"
    with pytest.raises(DatasetError, match=message):
        dataset.columns([0])


def test_file_that_pandas_wrote_keeps_its_columns(tmp_path_location: Location) -> None:
    frame = pandas.DataFrame(
        {
            "image": [{"bytes": data, "path": None} for data in pngs(2)],
            "label": [0, 1],
            "kind": pandas.Categorical(["x", "y"]),
        },
        index=["first", "second"],
    )
    sink = io.BytesIO()
    frame.to_parquet(sink)
    dataset = opened(tmp_path_location, one=sink.getvalue())
    table = dataset.columns([1])
    assert table is not None
    assert table.to_pylist() == [{"kind": "y", "__index_level_0__": "second"}]
