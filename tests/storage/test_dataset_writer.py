import io
import json
from collections.abc import Sequence
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from storage.commit import commit, stage
from storage.dataset_writer import DATASET_KIND, parquet_block
from storage.datasets import open_dataset
from storage.image_dataset import ImageDataset
from storage.location import Location, parse_location
from storage.original_images import original_from_bytes
from tests.storage.image_files import parquet_bytes, pngs

COARSE = {"_type": "ClassLabel", "names": ["small", "large"]}
TAGS = {"_type": "Sequence", "feature": {"dtype": "string", "_type": "Value"}}


def noise(shapes: Sequence[tuple[int, int, int]], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(256, s, generator=generator, dtype=torch.uint8) for s in shapes]


def block(images: Sequence[Tensor], **changes: Any) -> bytes:
    """A file of ``images``, all of class 1 and with neither names nor other columns."""
    arguments: dict[str, Any] = {
        "labels": torch.ones(len(images), dtype=torch.int64),
        "index": torch.arange(len(images)),
        "class_names": ["a", "b"],
        "paths": [None] * len(images),
        "columns": None,
    }
    return parquet_block(images, **arguments | changes)


def published(location: Location, blocks: Sequence[bytes]) -> ImageDataset:
    """The blocks as a dataset; stored last first, because only their names say the order."""
    parts = {}
    for number, data in reversed(list(enumerate(blocks))):
        name = f"data-{number:05d}.parquet"
        parts[name] = stage(location, name, data)
    commit(location, parts, kind=DATASET_KIND, description={})
    return open_dataset(str(location), image_size=4)


shapes = st.tuples(st.integers(1, 4), st.integers(1, 23), st.integers(1, 37))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), num_classes=st.integers(2, 1000), seed=st.integers(0, 2**16))
def test_dataset_comes_back_as_it_was_written(
    data: st.DataObject,
    num_classes: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    images = noise(data.draw(st.lists(shapes, min_size=2, max_size=7)), seed)
    size = len(images)
    some = st.lists(st.integers(0, num_classes - 1), min_size=size - 2, max_size=size - 2)
    labels = torch.tensor([0, num_classes - 1, *data.draw(some)])
    numbers = st.integers(-(2**63), 2**63 - 1)
    drawn = data.draw(st.lists(numbers, min_size=size, max_size=size, unique=True))
    index = torch.tensor(drawn)
    names = [f"class {number}" for number in range(num_classes)]
    step = data.draw(st.integers(1, size))
    blocks = [
        block(
            images[first : first + step],
            labels=labels[first : first + step],
            index=index[first : first + step],
            class_names=names,
            paths=[None] * len(images[first : first + step]),
        )
        for first in range(0, size, step)
    ]
    dataset = published(parse_location(tmp_path_factory.mktemp("kept")), blocks)
    for original, image in zip(dataset.originals(range(size)), images, strict=True):
        assert torch.equal(original, image)
    assert torch.equal(dataset.labels, labels)
    assert torch.equal(dataset.index, index)
    assert dataset.class_names == names
    assert dataset.paths(range(size)) == [f"{number}.png" for number in drawn]
    assert dataset.columns(range(size)) is None


def test_dataset_is_published_in_any_store(location: Location) -> None:
    images = noise([(3, 5, 4), (1, 2, 2), (4, 1, 1), (2, 3, 3)])
    labels = torch.tensor([0, 1, 1, 0])
    blocks = [block(images[n : n + 2], labels=labels[n : n + 2]) for n in (0, 2)]
    dataset = published(location, blocks)
    originals = dataset.originals([3, 0, 0, -2])
    for original, number in zip(originals, [3, 0, 0, 2], strict=True):
        assert torch.equal(original, images[number])


def carried_source(location: Location) -> ImageDataset:
    data = parquet_bytes(
        pngs(6),
        [0, 1, 2, 0, 1, 2],
        image_column="img",
        label_column="fine_label",
        class_names=["ant", "bee", "cat"],
        features={"coarse_label": COARSE, "tags": TAGS},
        paths=["a/0.JPEG", "1.png", None, "3", "../4.tar.gz", "/"],
        carried={
            "coarse_label": pa.array([0, 1, 1, 0, None, 1]),
            "caption": ["a", None, "é", "", "e", "f"],
            "tags": pa.array([["x", "y"], [], None, ["z"], [None], ["w"]], pa.list_(pa.string())),
            "kind": pa.array(list("aabbaa")).dictionary_encode(),
            "box": pa.array([{"x": n, "y": [n / 2]} for n in range(6)]),
            "text": pa.array(list("abcdef"), pa.large_string()),
        },
    )
    location.path.mkdir(parents=True)
    (location.path / "source.parquet").write_bytes(data)
    return open_dataset(location.path / "source.parquet", image_size=4)


def rewritten(source: ImageDataset, indices: Sequence[int], **changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "labels": source.labels[list(indices)],
        "index": source.index[list(indices)],
        "class_names": source.class_names,
        "paths": source.paths(indices),
        "columns": source.columns(indices),
    }
    return parquet_block(source.originals(indices), **arguments | changes)


def test_columns_stay_beside_their_image(tmp_path_location: Location) -> None:
    source = carried_source(tmp_path_location / "source")
    blocks = [rewritten(source, indices) for indices in ([0, 1, 2, 3], [4, 5])]
    dataset = published(tmp_path_location / "written", blocks)
    before, after = source.columns(range(6)), dataset.columns(range(6))
    assert before is not None
    assert after is not None
    assert after.schema.equals(before.schema, check_metadata=False)
    assert after.schema.metadata == before.schema.metadata
    assert after.to_pylist() == before.to_pylist()
    assert dataset.class_names == source.class_names
    paths = ["a/0.png", "1.png", "2.png", "3.png", "../4.tar.png", "5.png"]
    assert dataset.paths(range(6)) == paths
    assert torch.equal(dataset.read(range(6)), source.read(range(6)))


def test_metadata_is_what_datasets_takes(tmp_path_location: Location) -> None:
    schema = pq.read_schema(io.BytesIO(rewritten(carried_source(tmp_path_location), [0, 1])))
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("image") == pa.field("image", struct)
    assert schema.field("label") == pa.field("label", pa.int64())
    assert schema.field("index") == pa.field("index", pa.int64())
    carried = ["coarse_label", "caption", "tags", "kind", "box", "text"]
    assert schema.names == ["image", "label", "index", *carried]
    assert schema.metadata is not None
    assert list(schema.metadata) == [b"huggingface"]
    assert json.loads(schema.metadata[b"huggingface"]) == {
        "info": {
            "features": {
                "image": {"_type": "Image"},
                "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"},
                "index": {"dtype": "int64", "_type": "Value"},
                "coarse_label": COARSE,
                "tags": TAGS,
            }
        }
    }


def test_pandas_reads_it(tmp_path_location: Location) -> None:
    source = carried_source(tmp_path_location)
    frame = pandas.read_parquet(io.BytesIO(rewritten(source, range(6))))
    assert frame["label"].tolist() == [0, 1, 2, 0, 1, 2]
    assert frame["index"].tolist() == list(range(6))
    assert frame["caption"].fillna("none").tolist() == ["a", "none", "é", "", "e", "f"]
    assert frame["tags"][0].tolist() == ["x", "y"]
    for image, original in zip(frame["image"], source.originals(range(6)), strict=True):
        assert torch.equal(original_from_bytes(image["bytes"], name="x"), original)


def test_same_input_gives_the_same_bytes(tmp_path_location: Location) -> None:
    source = carried_source(tmp_path_location)
    data = rewritten(source, [1, 2, 3])
    assert rewritten(source, [1, 2, 3]) == data
    # Nor does it matter in how many pieces the columns are in memory.
    columns = source.columns(range(6))
    assert columns is not None
    pieces = pa.concat_tables([columns.slice(1, 2), columns.slice(3, 1)])
    for same in (pieces, pieces.combine_chunks(), columns.slice(1, 3)):
        assert rewritten(source, [1, 2, 3], columns=same) == data


def test_row_groups_are_small_enough_to_hold() -> None:
    def groups(data: bytes) -> list[int]:
        metadata = pq.ParquetFile(io.BytesIO(data)).metadata
        return [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]

    assert groups(block(noise([(1, 1, 1)] * 1000))) == [1000]
    assert groups(block(noise([(1, 1, 1)] * 1001))) == [1000, 1]
    large = pa.table({"large": [bytes(21 * 2**20)] * 4})  # three of these fit 64 MiB
    assert groups(block(noise([(1, 1, 1)] * 4), columns=large)) == [3, 1]
    assert groups(block([])) == [0]


def test_images_are_not_in_the_footer() -> None:
    column = pq.ParquetFile(io.BytesIO(block(noise([(3, 9, 9)] * 5)))).metadata.row_group(0)
    assert not column.column(0).is_stats_set
    assert column.column(2).statistics.max == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": torch.tensor([0])}, "labels has 1 rows for 2 images; expected one for each"),
        ({"index": torch.arange(3)}, "index has 3 rows for 2 images"),
        ({"paths": []}, "paths has 0 rows for 2 images"),
        ({"columns": pa.table({"a": [1]})}, "columns has 1 rows for 2 images"),
        ({"labels": torch.tensor([0, 2])}, "label is 2, and there are 2 class names"),
        ({"labels": torch.tensor([0, -1])}, r"label is -1, .*expected 0 <= label < 2"),
        ({"labels": torch.tensor([0.0, 1.0])}, r"labels has shape \(2,\) and dtype torch.float32"),
        ({"index": torch.zeros(2, 1, dtype=torch.int64)}, r"index has shape \(2, 1\)"),
        ({"columns": pa.table({"label": [1, 2]})}, r"column 'label', .*\(rename it\)"),
    ],
)
def test_wrong_argument_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        block(noise([(1, 2, 2)] * 2), **changes)
