"""Labelled images in Parquet files, in the layout that Hugging Face ``datasets`` writes.

Guarantee: labels are read and checked at once, encoded images one row group at a time and only
when asked for, so opening a dataset costs little however large it is. Images are fastest read in
row order: where the encoded images exceed ``cache_bytes``, rows far apart each cost the reading of
a whole row group.
"""

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from storage.blobs import BlobStore
from storage.errors import DatasetError
from storage.image_decoding import Pixels, decode_image
from storage.image_sources import check_labels
from storage.location import Location
from storage.parquet_columns import Columns, find_columns

# In quotes: Arrow's classes take type arguments only in its stubs, not when the program runs.
_Column: TypeAlias = "pa.ChunkedArray[Any]"


@dataclass(frozen=True, kw_only=True)
class _File:
    name: str
    where: str  # its whole address, for errors
    metadata: pq.FileMetaData
    columns: Columns
    labels: NDArray[np.int64]
    index: NDArray[np.int64] | None


class ParquetImages:
    """The rows of some Parquet files, one file after the other."""

    def __init__(
        self, location: Location, blobs: BlobStore, names: Sequence[str], *, cache_bytes: int
    ) -> None:
        """Read the labels of all files.

        Args:
            location: where the files are.
            blobs: the blobs of ``location``.
            names: at least one file, in the order their rows are to have.
            cache_bytes: the most to keep of encoded images.

        Raises:
            DatasetError: a file is no Parquet, lacks the columns, or has a wrong label.
        """
        self._location = location
        self._blobs = blobs
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[int, _Column] = OrderedDict()
        self._kept_bytes = 0
        self._lock = threading.Lock()
        self._files = [self._read_file(name) for name in names]
        self._first_rows = _starts([len(file.labels) for file in self._files])
        self._groups = [
            (number, group)
            for number, file in enumerate(self._files)
            for group in range(file.metadata.num_row_groups)
        ]
        self._group_first_rows = _starts(
            [self._files[n].metadata.row_group(g).num_rows for n, g in self._groups]
        )
        labels = np.concatenate([file.labels for file in self._files])
        self.class_names = check_labels(labels, self._class_names(), name=self._row_name)
        self.labels = torch.from_numpy(labels)
        self.index = torch.from_numpy(
            np.concatenate(
                [
                    first + np.arange(len(file.labels)) if file.index is None else file.index
                    for first, file in zip(self._first_rows, self._files, strict=True)
                ]
            )
        )

    def encoded(self, row: int) -> memoryview:
        """See :meth:`ImageSource.encoded`; a view of Arrow's memory, not a copy."""
        group = bisect_right(self._group_first_rows, row) - 1
        data = self._images(group)[row - self._group_first_rows[group]].as_buffer()
        if data is None:
            raise DatasetError(
                f"{self._row_name(row)} has no image bytes; expected the encoded image in the file"
                " itself (a path alone is not followed: embed the images when writing the file)"
            )
        return memoryview(data)

    def pixels(self, row: int, *, image_size: int) -> Pixels:
        """See :meth:`ImageSource.pixels`."""
        return decode_image(self.encoded(row), image_size=image_size, name=self._row_name(row))

    def _images(self, number: int) -> _Column:
        """Encoded images of row group ``number``, read at most once while there is room."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
                return self._kept[number]
            file_number, group = self._groups[number]
            file = self._files[file_number]
            with self._opened(file.name, file.metadata) as parquet:
                table = parquet.read_row_group(
                    group, columns=[file.columns.image], use_threads=False
                )
            images = table.column(0)
            if pa.types.is_struct(images.type):
                images = pc.struct_field(images, "bytes")
            self._kept[number] = images
            self._kept_bytes += images.nbytes
            while self._kept_bytes > self._cache_bytes and len(self._kept) > 1:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes
            return images

    @contextmanager
    def _opened(
        self, name: str, metadata: pq.FileMetaData | None = None
    ) -> Iterator[pq.ParquetFile]:
        # Opened anew for every use: a dataset can have more files than a process may hold open.
        try:
            with self._blobs.open(name) as file:
                yield pq.ParquetFile(file, metadata=metadata, pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(
                f"{self._location / name} cannot be read as Parquet ({type(error).__name__});"
                " expected a complete Parquet file (was it copied whole?)"
            ) from error

    def _read_file(self, name: str) -> _File:
        where = str(self._location / name)
        with self._opened(name) as parquet:
            columns = find_columns(parquet.schema_arrow, name=where)
            wanted = [columns.label] + ([columns.index] if columns.index else [])
            table = parquet.read(columns=wanted, use_threads=False)
            metadata = parquet.metadata
        return _File(
            name=name,
            where=where,
            metadata=metadata,
            columns=columns,
            labels=_integers(table.column(columns.label), f"{columns.label} of {where}"),
            index=_integers(table.column(columns.index), f"{columns.index} of {where}")
            if columns.index
            else None,
        )

    def _class_names(self) -> list[str] | None:
        first = self._files[0]
        for file in self._files:
            if file.columns.class_names != first.columns.class_names:
                raise DatasetError(
                    f"{file.where} has the classes {file.columns.class_names}, but"
                    f" {first.name} has {first.columns.class_names};"
                    " expected the files of one dataset (name one file, or use a pattern)"
                )
        return first.columns.class_names

    def _row_name(self, row: int) -> str:
        number = bisect_right(self._first_rows, row) - 1
        return f"{self._files[number].where} row {row - self._first_rows[number]}"


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where each of consecutive runs of these sizes begins."""
    return list(accumulate(sizes, initial=0))[:-1]


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
