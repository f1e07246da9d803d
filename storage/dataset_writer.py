"""Labelled images as Parquet files that ``datasets``, pandas, Ray Data and this project read.

Guarantee: the pixels that come back are those that went in, in their own size and mode; columns
that belong to an image stay beside it with the meaning they had; the same input gives the same
bytes, so a block that is made twice is stored once.

A dataset is a commit of kind ``dataset`` with parts ``data-00000.parquet`` and so on, whose rows
follow each other in the order of those names.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from storage.original_images import png_bytes
from storage.parquet_columns import (
    IMAGE_COLUMN,
    INDEX_COLUMN,
    LABEL_COLUMN,
    WRITTEN_COLUMNS,
    features_of,
    with_features,
)

DATASET_KIND: Final = "dataset"

# What a reader has to hold to see one image of a group. A thousand small images keep the footer
# of a large dataset short; a thousand photographs would be hundreds of megabytes.
_GROUP_ROWS: Final = 1000
_GROUP_BYTES: Final = 64 * 2**20
# PNG too: pixels are compressed already, but headers repeat. Measured for 1000 images a group,
# zstd writes 0.85 (28 x 28), 0.99 (32 x 32) and 1.00 (640 x 427) of the bytes of the PNG files,
# no compression 1.10, 1.01 and 1.00; it takes 5 ms where making the PNG files takes 150.
_COMPRESSION: Final = "zstd"


def parquet_block(
    images: Sequence[Tensor],
    labels: Tensor,
    index: Tensor,
    *,
    class_names: Sequence[str],
    paths: Sequence[str | None],
    columns: pa.Table | None,
) -> bytes:
    """Return one Parquet file of these images, to be staged as one part of a dataset.

    Args:
        images: ``N`` tensors ``(C, H, W)`` uint8, below 2 GiB as PNG; 1 to 4 channels are L, LA,
            RGB, RGBA.
        labels: ``(N,)`` int64 in ``[0, len(class_names))``.
        index: ``(N,)`` int64: the number that binds each image to its original.
        class_names: one for each class, the same in every block of a dataset.
        paths: the images' names as :meth:`ImageDataset.paths` gives them. Their suffix becomes
            ``.png``; an image without a name is called by its index.
        columns: ``N`` rows as :meth:`ImageDataset.columns` gives them; what each column means
            comes with the schema. ``None`` where there are none.

    Raises:
        ValueError: lengths differ, a label names no class, a column's name is taken, or an image
            has another shape or type.
    """
    carried = pa.table({}) if columns is None else columns
    num_carried = len(images) if columns is None else columns.num_rows
    sizes = {"labels": len(labels), "index": len(index), "paths": len(paths)}
    _check_sizes(len(images), sizes | {"columns": num_carried})
    _check_values(labels, index, class_names=class_names, names=carried.column_names)
    pngs = pa.array([png_bytes(image) for image in images], pa.binary())
    names = [_png_path(path, number) for path, number in zip(paths, index.tolist(), strict=True)]
    table = pa.table(
        {
            IMAGE_COLUMN: pa.StructArray.from_arrays(
                [pngs, pa.array(names, pa.string())], ["bytes", "path"]
            ),
            LABEL_COLUMN: pa.array(labels.tolist(), pa.int64()),
            INDEX_COLUMN: pa.array(index.tolist(), pa.int64()),
        }
    )
    for field, column in zip(carried.schema, carried.columns, strict=True):
        table = table.append_column(field, column)
    features = _written_features(class_names) | features_of(carried.schema)
    schema = with_features(table.schema, features)
    return _to_bytes(table.replace_schema_metadata(schema.metadata))


def _written_features(class_names: Sequence[str]) -> dict[str, object]:
    return {
        IMAGE_COLUMN: {"_type": "Image"},
        LABEL_COLUMN: {"names": list(class_names), "_type": "ClassLabel"},
        INDEX_COLUMN: {"dtype": "int64", "_type": "Value"},
    }


def _png_path(path: str | None, number: int) -> str:
    name = PurePosixPath(path or "")
    return str(name.with_suffix(".png")) if name.name else f"{number}.png"


def _to_bytes(table: pa.Table) -> bytes:
    # In one piece: where a page of the file ends depends on where the pieces in memory do.
    table = table.combine_chunks()
    fitting = _GROUP_BYTES * table.num_rows // max(table.nbytes, 1)
    file = io.BytesIO()
    pq.write_table(
        table,
        file,
        row_group_size=max(1, min(fitting, _GROUP_ROWS)),
        compression=_COMPRESSION,
        # No two images are the same, and zstd sees what other columns repeat.
        use_dictionary=False,
        # The smallest and largest image of each group would be most of the footer.
        write_statistics=[LABEL_COLUMN, INDEX_COLUMN],
    )
    return file.getvalue()


def _check_sizes(num_images: int, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size != num_images:
            raise ValueError(
                f"{name} has {size} rows for {num_images} images; expected one for each image"
            )


def _check_values(
    labels: Tensor, index: Tensor, *, class_names: Sequence[str], names: Sequence[str]
) -> None:
    for name, values in (("labels", labels), ("index", index)):
        if values.dtype != torch.int64 or values.ndim != 1:
            raise ValueError(
                f"{name} has shape {tuple(values.shape)} and dtype {values.dtype};"
                " expected one int64 for each image"
            )
    wrong = labels[(labels < 0) | (labels >= len(class_names))]
    if len(wrong):
        raise ValueError(
            f"label is {int(wrong[0])}, and there are {len(class_names)} class names;"
            f" expected 0 <= label < {len(class_names)}"
        )
    if taken := [name for name in names if name in WRITTEN_COLUMNS]:
        raise ValueError(
            f"columns has a column {taken[0]!r}, a name that every dataset uses itself;"
            f" expected none of {', '.join(WRITTEN_COLUMNS)} (rename it)"
        )
