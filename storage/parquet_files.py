"""Parquet files of labelled images: what is known of them without reading an image.

Guarantee: what is read ahead or by many threads at once is what one thread would read, and a file
that is damaged or was cut short is an error that names it.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.errors import DatasetError
from storage.location import Location
from storage.parquet_columns import Columns, find_columns

# In quotes: Arrow's classes take type arguments only in its stubs, not when the program runs.
Column: TypeAlias = "pa.ChunkedArray[Any]"

# A request to S3 takes about 30 ms however little it asks for, so several are under way at a time;
# boto3 has 10 connections.
THREADS: Final = 8


class Opener(Protocol):
    """Where files are opened: the blobs of a location, or what is kept of them nearer by."""

    def open(self, name: str) -> BinaryIO:
        """Open a file for seeking and reading; called from several threads."""


class Readers:
    """Open readers of one file, each used by one thread at a time."""

    def __init__(self, files: Opener, name: str) -> None:
        """Read the file ``name`` of ``files``; it is not opened yet."""
        self._files = files
        self._name = name
        self._idle: list[BinaryIO] = []

    @contextmanager
    def borrow(self) -> Iterator[BinaryIO]:
        """A reader that nobody else uses inside the block."""
        try:
            file = self._idle.pop()
        except IndexError:
            file = self._files.open(self._name)
        try:
            yield file
        finally:
            # A reader on S3 is kept, because opening one takes a request. One on disk is not: a
            # dataset can have more files than a process may hold open.
            if _has_descriptor(file):
                file.close()
            else:
                self._idle.append(file)


@dataclass(frozen=True, kw_only=True)
class ParquetFile:
    """One file, known by its footer. Safe to read from several threads."""

    name: str
    """Its name among the files of its dataset."""
    where: str
    """Its whole address, for errors."""
    readers: Readers
    """What reads it."""
    metadata: pq.FileMetaData
    """Its footer."""
    columns: Columns
    """Where in it to find what."""

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        """Return some columns of row group ``group``, in this order.

        On S3 this is one request for each run of neighbouring columns.

        Args:
            group: number of the row group in this file.
            columns: names of columns, or ``column.field`` for one field of a struct.

        Raises:
            DatasetError: the file changed or is damaged.
        """
        with _errors_explained(self.where), self.readers.borrow() as file:
            parquet = pq.ParquetFile(file, metadata=self.metadata, pre_buffer=True)
            table = parquet.read_row_group(group, columns=list(columns), use_threads=False)
        return pa.Table.from_arrays([_at(table, path) for path in columns], names=list(columns))

    def group_bytes(self, group: int, columns: Sequence[str]) -> int:
        """Bytes that some columns of row group ``group`` take in memory, before it is read.

        Args:
            group: number of the row group in this file.
            columns: as for :meth:`read_group`.
        """
        row_group = self.metadata.row_group(group)
        chunks = [row_group.column(number) for number in range(row_group.num_columns)]
        # A column of structs or lists is stored as its leaves.
        return sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if any(f"{chunk.path_in_schema}.".startswith(f"{path}.") for path in columns)
        )


def open_files(location: Location, files: Opener, names: Sequence[str]) -> list[ParquetFile]:
    """Read the footers of some files.

    Args:
        location: folder of the files; only named in errors.
        files: what opens them.
        names: of the files.

    Raises:
        DatasetError: a file is no Parquet, or lacks the columns.
    """

    def read_footer(name: str) -> ParquetFile:
        where, readers = str(location / name), Readers(files, name)
        with _errors_explained(where), readers.borrow() as file:
            parquet = pq.ParquetFile(file)
            schema, metadata = parquet.schema_arrow, parquet.metadata
        columns = find_columns(schema, name=where)
        return ParquetFile(
            name=name, where=where, readers=readers, metadata=metadata, columns=columns
        )

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read_footer, names))


def _has_descriptor(file: BinaryIO) -> bool:
    try:
        file.fileno()
    except OSError:
        return False
    return True


@contextmanager
def _errors_explained(where: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{where} cannot be read as Parquet ({type(error).__name__});"
            " expected a complete Parquet file (was it copied whole?)"
        ) from error


def _at(table: pa.Table, path: str) -> Column:
    # The name first: other tools write columns with dots in their names.
    if path in table.column_names:
        return table.column(path)
    column, _, field = path.rpartition(".")
    leaf: Column = pc.struct_field(table.column(column), field)
    return leaf
