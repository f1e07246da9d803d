"""The labels of Parquet files: all of them at once, though they lie between the images.

Guarantee: a label or index that is no integer is an error that names its row, before anything is
trained on it.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from storage.errors import DatasetError
from storage.parquet_columns import Columns
from storage.parquet_files import THREADS, Column, ParquetFile


@dataclass(frozen=True, kw_only=True)
class RowLabels:
    """The labels and the index of one file's rows."""

    labels: NDArray[np.int64]
    """``(N,)`` as they are stored, not yet checked against the classes."""
    index: NDArray[np.int64] | None
    """``(N,)`` the file's own numbers of its rows; ``None`` where it has none."""


def read_labels(files: Sequence[ParquetFile]) -> list[RowLabels]:
    """Read the labels and the index of all rows of ``files``.

    Raises:
        DatasetError: a label or an index is no integer, or a file is damaged.
    """
    # Labels lie between the images, so each row group is a request of its own. The first group of
    # every file comes first: the fewer threads a file has, the fewer have to open it.
    places = sorted(
        (group, number)
        for number, file in enumerate(files)
        for group in range(file.metadata.num_row_groups)
    )

    def read(place: tuple[int, int]) -> pa.Table:
        file = files[place[1]]
        return file.read_group(place[0], _label_columns(file.columns))

    with ThreadPoolExecutor(THREADS) as pool:
        tables = dict(zip(places, pool.map(read, places), strict=True))
    return [
        _labels_of(file, [tables[g, number] for g in range(file.metadata.num_row_groups)])
        for number, file in enumerate(files)
    ]


def _labels_of(file: ParquetFile, groups: Sequence[pa.Table]) -> RowLabels:
    def column(name: str) -> NDArray[np.int64]:
        chunks = [chunk for table in groups for chunk in table.column(name).chunks]
        values = pa.chunked_array(chunks, None if chunks else pa.int64())
        return _integers(values, f"{name} of {file.where}")

    index = file.columns.index
    return RowLabels(
        labels=column(file.columns.label), index=None if index is None else column(index)
    )


def _label_columns(columns: Columns) -> list[str]:
    return [columns.label] if columns.index is None else [columns.label, columns.index]


def _integers(values: Column, where: str) -> NDArray[np.int64]:
    if values.null_count:
        row = pc.index(pc.is_null(values), True).as_py()
        raise DatasetError(
            f"{where} row {row} is null ({values.null_count} such rows);"
            " expected an integer in every row (drop rows without one first)"
        )
    if not pa.types.is_integer(values.type):
        value = values[0].as_py() if len(values) else None
        raise DatasetError(
            f"{where} row 0 is {value!r}, of type {values.type}; expected an integer column"
        )
    try:
        integers: NDArray[np.int64] = values.cast(pa.int64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DatasetError(
            f"{where} goes up to {pc.max(values).as_py()}; expected values that fit int64"
        ) from error
    return integers
