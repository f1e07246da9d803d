"""One Parquet file of labelled images: what is known of it without reading an image.

Guarantee: a label or index that is no integer is an error that names its row when the file is
opened, before anything is trained on it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from storage.blobs import BlobStore
from storage.errors import DatasetError
from storage.location import Location
from storage.parquet_columns import Columns, find_columns

# In quotes: Arrow's classes take type arguments only in its stubs, not when the program runs.
_Column: TypeAlias = "pa.ChunkedArray[Any]"


@dataclass(frozen=True, kw_only=True)
class ParquetFile:
    """One file, opened once for its labels."""

    location: Location
    """Folder of the file."""
    blobs: BlobStore
    """The blobs of ``location``."""
    name: str
    """Its name in ``location``."""
    metadata: pq.FileMetaData
    """Its footer."""
    columns: Columns
    """Where in it to find what."""
    labels: NDArray[np.int64]
    """``(N,)`` as they are stored, not yet checked against the classes."""
    index: NDArray[np.int64] | None
    """``(N,)`` the file's own numbers of its rows; ``None`` where it has none."""

    @property
    def where(self) -> str:
        """Its whole address, for errors."""
        return str(self.location / self.name)

    def read_group(self, group: int, columns: tuple[str, ...]) -> pa.Table:
        """Return some columns of row group ``group``, in this order.

        Args:
            group: number of the row group in this file.
            columns: names of columns, or ``column.field`` for one field of a struct.

        Raises:
            DatasetError: the file changed or is damaged.
        """
        with _opened(self.location, self.blobs, self.name, self.metadata) as parquet:
            table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
        return pa.Table.from_arrays([_at(table, path) for path in columns], names=list(columns))


def read_file(location: Location, blobs: BlobStore, name: str) -> ParquetFile:
    """Read the labels and the index of one file.

    Args:
        location: folder of the file.
        blobs: the blobs of ``location``.
        name: of the file in it.

    Raises:
        DatasetError: it is no Parquet, lacks the columns, or a label or index is no integer.
    """
    where = str(location / name)
    with _opened(location, blobs, name) as parquet:
        columns = find_columns(parquet.schema_arrow, name=where)
        wanted = [columns.label] + ([columns.index] if columns.index else [])
        table = parquet.read(columns=wanted, use_threads=False)
        metadata = parquet.metadata
    return ParquetFile(
        location=location,
        blobs=blobs,
        name=name,
        metadata=metadata,
        columns=columns,
        labels=_integers(table.column(columns.label), f"{columns.label} of {where}"),
        index=_integers(table.column(columns.index), f"{columns.index} of {where}")
        if columns.index
        else None,
    )


@contextmanager
def _opened(
    location: Location, blobs: BlobStore, name: str, metadata: pq.FileMetaData | None = None
) -> Iterator[pq.ParquetFile]:
    # Opened anew for every use: a dataset can have more files than a process may hold open.
    try:
        with blobs.open(name) as file:
            yield pq.ParquetFile(file, metadata=metadata, pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{location / name} cannot be read as Parquet ({type(error).__name__});"
            " expected a complete Parquet file (was it copied whole?)"
        ) from error


def _at(table: pa.Table, path: str) -> _Column:
    # The name first: other tools write columns with dots in their names.
    if path in table.column_names:
        return table.column(path)
    column, _, field = path.rpartition(".")
    leaf: _Column = pc.struct_field(table.column(column), field)
    return leaf


def _integers(values: _Column, where: str) -> NDArray[np.int64]:
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
