"""Row groups of Parquet files, each read at most once while there is room, some ahead of their use.

Guarantee: :meth:`RowGroups.get` returns or raises what reading that row group does. What was asked
for before, and what was hinted at, decide only how long it takes.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeAlias

import pyarrow as pa

from storage.parquet_files import THREADS, ParquetFile

Key: TypeAlias = tuple[int, tuple[str, ...]]
"""Number of a row group, and which of its columns."""

# Row groups that are read ahead of somebody who goes through them in order.
_MOST_AHEAD: Final = THREADS


class _Group:
    """One row group that is being read, or was."""

    def __init__(self, expected_bytes: int) -> None:
        self.size_bytes = expected_bytes
        self.is_used = False
        self.table: pa.Table | None = None
        self.coming: Future[pa.Table]


class RowGroups:
    """Row groups by number. Safe to share between threads and to take through a fork."""

    def __init__(self, places: Sequence[tuple[ParquetFile, int]], *, cache_bytes: int) -> None:
        """Number the row groups ``places``; none is read yet.

        Args:
            places: the file of each, and its number in there.
            cache_bytes: the most to keep, though always one. At most half of it is read ahead,
                so 0 reads nothing ahead.
        """
        self._places = places
        self._cache_bytes = cache_bytes
        self._kept: OrderedDict[Key, _Group] = OrderedDict()
        self._plan: dict[Key, None] = {}
        # Of each choice of columns the row group read last, and how many steps led there in order.
        self._runs: dict[tuple[str, ...], tuple[int, int]] = {}
        self._start()

    def get(self, number: int, columns: tuple[str, ...]) -> pa.Table:
        """Some columns of row group ``number``."""
        self._start_again_after_fork()
        key = number, columns
        with self._lock:
            group = self._kept.get(key) or self._begin(key)
            self._kept.move_to_end(key)
            self._plan.pop(key, None)
            group.is_used = True
            self._follow(key)
            self._read_ahead()
            if group.table is not None:
                return group.table
        return group.coming.result()

    def prefetch(self, keys: Iterable[Key]) -> None:
        """Begin to read these, in this order, and before what is left of earlier hints."""
        self._start_again_after_fork()
        with self._lock:
            self._plan = dict.fromkeys(key for key in keys if key not in self._kept) | self._plan
            self._read_ahead()

    def _follow(self, key: Key) -> None:
        """Plan to go on where row groups are read in order; never further than they were so far."""
        number, columns = key
        last, num_in_order = self._runs.get(columns, (None, 0))
        if number == last:
            return
        num_in_order = num_in_order + 1 if last == number - 1 else 0
        self._runs[columns] = number, num_in_order
        stop = number + 1 + min(num_in_order - 1, _MOST_AHEAD)
        for later in range(number + 1, min(stop, len(self._places))):
            if self._size_bytes((later, columns)):  # other files may call their columns otherwise
                self._plan.setdefault((later, columns))

    def _read_ahead(self) -> None:
        if not self._plan:
            return
        unused = [group for group in self._kept.values() if not group.is_used]
        num_coming = sum(group.table is None for group in unused)
        unused_bytes = sum(group.size_bytes for group in unused)
        while self._plan:
            key = next(iter(self._plan))
            if key not in self._kept:
                unused_bytes += self._size_bytes(key)
                if num_coming == THREADS or unused_bytes > self._cache_bytes // 2:
                    return
                self._begin(key)
                num_coming += 1
            del self._plan[key]

    def _begin(self, key: Key) -> _Group:
        group = self._kept[key] = _Group(self._size_bytes(key))
        group.coming = self._pool.submit(self._fill, key, group)
        return group

    def _fill(self, key: Key, group: _Group) -> pa.Table:
        (file, place), columns, table = self._places[key[0]], key[1], None
        try:
            table = file.read_group(place, columns)
        finally:
            with self._lock:
                if table is None:
                    # Whoever waits for it learns why; whoever comes later tries again.
                    del self._kept[key]
                else:
                    group.table, group.size_bytes = table, table.nbytes
                self._forget()
                self._read_ahead()
        return table

    def _size_bytes(self, key: Key) -> int:
        file, place = self._places[key[0]]
        return file.group_bytes(place, key[1])

    def _forget(self) -> None:
        kept_bytes = sum(group.size_bytes for group in self._kept.values())
        while kept_bytes > self._cache_bytes and len(self._kept) > 1:
            key, oldest = next(iter(self._kept.items()))
            if oldest.table is None:  # still coming; looked at again when it is there
                return
            del self._kept[key]
            kept_bytes -= oldest.size_bytes

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._plan.clear()
        # One more than read ahead: what somebody waits for does not queue behind hints.
        self._pool = ThreadPoolExecutor(THREADS + 1, thread_name_prefix="row-groups")

    def _start_again_after_fork(self) -> None:
        """A fork copies neither threads nor what they were about to do, but locks as they were."""
        if self._pid != os.getpid():
            self._kept = OrderedDict(
                (key, group) for key, group in self._kept.items() if group.table is not None
            )
            self._start()
