"""Row groups in any order, ahead of their use, with little memory, after a fork, and failing."""

import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import UnavailableError
from storage.parquet_files import ParquetFile
from storage.parquet_groups import RowGroups

GROUP_BYTES = 80
IMAGE = ("image",)


class FakeFile:
    """A file whose row group ``n`` holds ten times the number ``n``, and that counts its reads."""

    def __init__(self, fails: Callable[[int], bool] = lambda group: False) -> None:
        self.reads: list[int] = []
        self.most_at_once = 0
        self.is_open = threading.Event()
        self.is_open.set()
        self._fails = fails
        self._num_reading = 0
        self._lock = threading.Lock()

    def read_group(self, group: int, columns: Sequence[str]) -> pa.Table:
        with self._lock:
            self.reads.append(group)
            self._num_reading += 1
            self.most_at_once = max(self.most_at_once, self._num_reading)
        self.is_open.wait()
        with self._lock:
            self._num_reading -= 1
        if self._fails(group):
            raise UnavailableError(f"group {group} is unreachable")
        return pa.table({columns[0]: pa.array([group] * 10, pa.int64())})

    def group_bytes(self, group: int, columns: Sequence[str]) -> int:
        return GROUP_BYTES if columns == IMAGE else 0


def groups_of(file: FakeFile, *, num_groups: int = 40, room: float = 1000) -> RowGroups:
    """``room`` is the memory in row groups."""
    places = [(cast(ParquetFile, file), group) for group in range(num_groups)]
    return RowGroups(places, cache_bytes=int(room * GROUP_BYTES))


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def settled(groups: RowGroups, file: FakeFile) -> list[int]:
    """What was read, once nothing is read any more."""

    def is_idle() -> bool:
        with groups._lock:
            return all(group.table is not None for group in groups._kept.values())

    eventually(is_idle)
    return file.reads


STEPS = st.lists(
    st.one_of(
        st.integers(0, 9),  # read one
        st.lists(st.integers(0, 9), max_size=12),  # hint at several
    ),
    max_size=40,
)


@given(steps=STEPS, room=st.sampled_from([0, 1, 2.5, 4, 8, 100]))
def test_what_is_read_depends_neither_on_order_nor_on_hints_nor_on_room(
    steps: list[Any], room: float
) -> None:
    file = FakeFile()
    groups = groups_of(file, num_groups=10, room=room)
    for step in steps:
        if isinstance(step, list):
            groups.prefetch((number, IMAGE) for number in step)
        else:
            assert groups.get(step, IMAGE).column(0).to_pylist() == [step] * 10
    settled(groups, file)
    assert sum(g.size_bytes for g in groups._kept.values()) <= max(room, 1) * GROUP_BYTES


def test_each_group_is_read_once_while_there_is_room() -> None:
    file = FakeFile()
    groups = groups_of(file)
    groups.prefetch((number, IMAGE) for number in (7, 3, 7, 5))
    for number in [*range(40), 3, 39, 0]:
        groups.get(number, IMAGE)
    assert sorted(settled(groups, file)) == list(range(40))


def test_reading_in_order_is_read_ahead_of_but_never_further_than_it_went() -> None:
    file = FakeFile()
    groups = groups_of(file)
    for number, read_so_far in ((5, 6), (6, 7), (7, 9), (8, 11), (9, 13), (20, 21)):
        groups.get(number, IMAGE)
        reads = settled(groups, file)
        assert max(reads) == read_so_far - 1
        assert len(reads) == len(set(reads))
    for number in range(20, 40):
        groups.get(number, IMAGE)
    assert sorted(settled(groups, file)) == [*range(5, 13), *range(20, 40)]


def test_reading_out_of_order_reads_nothing_else() -> None:
    file = FakeFile()
    groups = groups_of(file)
    order = [3, 1, 30, 31, 4, 20, 19, 18, 5]
    for number in order:
        groups.get(number, IMAGE)
    assert settled(groups, file) == order


def test_columns_that_the_next_file_lacks_are_not_read_ahead() -> None:
    file = FakeFile()
    groups = groups_of(file)
    for number in range(5):
        groups.get(number, ("other",))
    assert settled(groups, file) == list(range(5))


def test_hints_are_read_at_once_by_several_threads_and_by_no_more_than_eight() -> None:
    file = FakeFile()
    groups = groups_of(file)
    file.is_open.clear()
    groups.prefetch((number, IMAGE) for number in range(30))
    waiting = threading.Thread(target=groups.get, args=(35, IMAGE))
    waiting.start()
    # What is waited for does not queue behind hints.
    eventually(lambda: sorted(file.reads) == [*range(8), 35])
    groups.prefetch([(20, IMAGE)])
    assert list(groups._plan)[:2] == [(20, IMAGE), (8, IMAGE)]  # the newest hint goes first
    file.is_open.set()
    waiting.join()
    assert sorted(settled(groups, file)) == [*range(30), 35]
    assert file.most_at_once == 9


def test_hints_take_no_more_than_half_of_the_memory() -> None:
    file = FakeFile()
    groups = groups_of(file, num_groups=30, room=8)
    groups.prefetch((number, IMAGE) for number in range(30))
    assert sorted(settled(groups, file)) == [0, 1, 2, 3]
    groups.get(0, IMAGE)
    assert sorted(settled(groups, file)) == [0, 1, 2, 3, 4]
    for number in range(30):
        groups.get(number, IMAGE)
    assert sorted(settled(groups, file)) == list(range(30))


def test_nothing_is_read_ahead_without_memory() -> None:
    file = FakeFile()
    groups = groups_of(file, room=0)
    groups.prefetch((number, IMAGE) for number in range(5))
    for number in (0, 1, 2, 3):
        groups.get(number, IMAGE)
    assert settled(groups, file) == [0, 1, 2, 3]
    assert list(groups._kept) == [(3, IMAGE)]


def test_an_error_ahead_surfaces_where_the_data_is_needed() -> None:
    file = FakeFile(fails=lambda group: group == 6)
    groups = groups_of(file)
    groups.prefetch((number, IMAGE) for number in (5, 6, 7))
    assert sorted(settled(groups, file)) == [5, 6, 7]
    assert groups.get(5, IMAGE).num_rows == groups.get(7, IMAGE).num_rows == 10
    for _ in range(2):
        with pytest.raises(UnavailableError, match="group 6 is unreachable"):
            groups.get(6, IMAGE)


def test_an_error_ahead_that_is_over_is_no_error() -> None:
    file = FakeFile(fails=lambda group: group == 6 and file.reads.count(6) == 1)
    groups = groups_of(file)
    groups.prefetch([(6, IMAGE)])
    settled(groups, file)
    assert groups.get(6, IMAGE).num_rows == 10


def test_one_who_waits_for_a_failing_hint_is_told() -> None:
    file = FakeFile(fails=lambda group: True)
    groups = groups_of(file)
    file.is_open.clear()
    groups.prefetch([(6, IMAGE)])
    group = groups._kept[6, IMAGE]
    threading.Thread(target=lambda: (eventually(lambda: group.is_used), file.is_open.set())).start()
    with pytest.raises(UnavailableError, match="group 6 is unreachable"):
        groups.get(6, IMAGE)
    assert file.reads == [6]


def test_many_threads_read_each_group_once() -> None:
    file = FakeFile()
    groups = groups_of(file)
    wrong: list[int] = []

    def read_all(step: int) -> None:
        for number in range(40):
            number = (number * step) % 40
            if groups.get(number, IMAGE).column(0)[0].as_py() != number:
                wrong.append(number)

    threads = [threading.Thread(target=read_all, args=(step,)) for step in (1, 3, 7, 9, 11, 13)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sorted(settled(groups, file)) == list(range(40))


def test_a_fork_in_the_middle_of_reading_ahead_reads_on() -> None:
    file = FakeFile()
    groups = groups_of(file)
    groups.get(1, IMAGE)
    file.is_open.clear()
    groups.prefetch((number, IMAGE) for number in range(12))
    eventually(lambda: len(file.reads) == 9)

    def child(answer: Connection) -> None:
        file.is_open = threading.Event()
        file.is_open.set()
        file.reads.clear()
        file._lock = threading.Lock()
        values = [groups.get(number, IMAGE).column(0)[0].as_py() for number in (1, 2, 11)]
        answer.send((values, file.reads))

    here, there = multiprocessing.Pipe(duplex=False)
    with groups._lock:  # as if another thread were at work in there
        process = multiprocessing.get_context("fork").Process(target=child, args=(there,))
        process.start()
    assert here.poll(20), "the child hangs"
    assert here.recv() == ([1, 2, 11], [2, 11])  # 1 was there already
    process.join()
    file.is_open.set()
    assert groups.get(11, IMAGE).num_rows == 10
