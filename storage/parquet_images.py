"""Labelled images in Parquet files, in the layout that Hugging Face ``datasets`` writes.

Guarantee: labels are read and checked at once, everything else one row group at a time, when it is
asked for or soon will be, so opening a dataset costs little however large it is. Images are fastest
read in row order: where the encoded images exceed ``cache_bytes``, rows far apart each cost the
reading of a whole row group.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from storage.errors import DatasetError
from storage.image_decoding import Pixels, decode_image
from storage.image_sources import check_labels
from storage.location import Location
from storage.original_images import original_from_bytes
from storage.parquet_columns import common_columns
from storage.parquet_files import Opener, open_files
from storage.parquet_groups import RowGroups
from storage.parquet_labels import read_labels


class ParquetImages:
    """The rows of some Parquet files, one file after the other."""

    def __init__(
        self, location: Location, files: Opener, names: Sequence[str], *, cache_bytes: int
    ) -> None:
        """Read the labels of all files.

        Args:
            location: where the files are; only named in errors.
            files: what opens them, for example the blobs of ``location``.
            names: at least one file, in the order their rows are to have.
            cache_bytes: the most to keep of what was read.

        Raises:
            DatasetError: a file is no Parquet, lacks the columns, or has a wrong label.
        """
        self._files = open_files(location, files, names)
        rows = read_labels(self._files)
        self._first_rows = _starts([len(found.labels) for found in rows])
        self._places = [
            (file, group) for file in self._files for group in range(file.metadata.num_row_groups)
        ]
        self._group_first_rows = _starts(
            [file.metadata.row_group(group).num_rows for file, group in self._places]
        )
        self._groups = RowGroups(self._places, cache_bytes=cache_bytes)
        labels = np.concatenate([found.labels for found in rows])
        self.class_names = check_labels(labels, self._class_names(), name=self._row_name)
        self.labels = torch.from_numpy(labels)
        self.index = torch.from_numpy(
            np.concatenate(
                [
                    first + np.arange(len(found.labels)) if found.index is None else found.index
                    for first, found in zip(self._first_rows, rows, strict=True)
                ]
            )
        )

    def prefetch(self, rows: Sequence[int]) -> None:
        """See :meth:`ImageSource.prefetch`."""
        numbers = np.searchsorted(self._group_first_rows, rows, side="right") - 1
        self._groups.prefetch(
            (number, (self._places[number][0].columns.image,))
            for number in dict.fromkeys(numbers.tolist())
        )

    def encoded(self, row: int) -> memoryview:
        """See :meth:`ImageSource.encoded`; a view of Arrow's memory, not a copy."""
        number, place = self._find(row)
        image = self._places[number][0].columns.image
        data = self._groups.get(number, (image,)).column(0)[place].as_buffer()
        if data is None:
            raise DatasetError(
                f"{self._row_name(row)} has no image bytes; expected the encoded image in the file"
                " itself (a path alone is not followed: embed the images when writing the file)"
            )
        return memoryview(data)

    def pixels(self, row: int, *, image_size: int) -> Pixels:
        """See :meth:`ImageSource.pixels`."""
        return decode_image(self.encoded(row), image_size=image_size, name=self._row_name(row))

    def original(self, row: int) -> Tensor:
        """See :meth:`ImageSource.original`."""
        return original_from_bytes(self.encoded(row), name=self._row_name(row))

    def path(self, row: int) -> str | None:
        """See :meth:`ImageSource.path`."""
        number, place = self._find(row)
        path = self._places[number][0].columns.path
        if path is None:
            return None
        value: str | None = self._groups.get(number, (path,)).column(0)[place].as_py()
        return value

    def columns(self, rows: Sequence[int]) -> pa.Table | None:
        """See :meth:`ImageSource.columns`."""
        schema = self._carried
        if not schema.names:
            return None
        numbers, places = np.array([self._find(row) for row in rows], np.int64).reshape(-1, 2).T
        needed, names = np.unique(numbers).tolist(), tuple(schema.names)
        self._groups.prefetch((number, names) for number in needed)
        # Each row group is read once; the last step puts the rows back in the order given.
        pieces = [
            self._groups.get(number, names).take(places[numbers == number]) for number in needed
        ]
        order = np.argsort(np.argsort(numbers, kind="stable"))
        table = pa.concat_tables(pieces).take(order) if pieces else schema.empty_table()
        return pa.Table.from_arrays(table.columns, schema=schema)

    @cached_property
    def _carried(self) -> pa.Schema:
        return common_columns([(file.where, file.columns.carried) for file in self._files])

    def _find(self, row: int) -> tuple[int, int]:
        """Number of the row group that holds ``row``, and its place inside."""
        number = bisect_right(self._group_first_rows, row) - 1
        return number, row - self._group_first_rows[number]

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
