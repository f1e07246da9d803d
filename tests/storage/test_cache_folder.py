"""What processes share: one download, a bound that holds, nothing removed under a reader."""

import errno
import hashlib
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.cache_folder import CacheFolder
from storage.manifest import Part

PROCESSES = multiprocessing.get_context("fork")  # `spawn` would load torch in each of them
SIZE_BYTES = 1000


def content(number: int, *, size_bytes: int = SIZE_BYTES) -> bytes:
    return random.Random(number).randbytes(size_bytes)


def part_of(data: bytes) -> Part:
    digest = hashlib.sha256(data).hexdigest()
    return Part(path=f"part.{digest}.bin", sha256=digest, size_bytes=len(data))


def download_of(data: bytes, calls: list[int] | None = None) -> Callable[[BinaryIO], None]:
    def download(file: BinaryIO) -> None:
        if calls is not None:
            calls.append(len(data))
        file.write(data)

    return download


def opened(cache: CacheFolder, data: bytes, calls: list[int] | None = None) -> BinaryIO:
    return cache.open(part_of(data), download_of(data, calls))


def use(cache: CacheFolder, number: int) -> bool:
    """Read one part; whether it had to be downloaded. The clock ticks between two uses."""
    calls: list[int] = []
    with opened(cache, content(number), calls) as file:
        assert file.read() == content(number)
    time.sleep(0.01)
    return bool(calls)


def names(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()} - {"lock"}


def size_of(path: Path) -> int:
    total = 0
    for name in names(path):
        with suppress(FileNotFoundError):
            total += (path / name).stat().st_size
    return total


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "parts"


def test_each_part_is_downloaded_once(path: Path) -> None:
    cache = CacheFolder(path, max_bytes=10 * SIZE_BYTES)
    assert [use(cache, number) for number in (1, 2, 1, 2)] == [True, True, False, False]
    assert [use(CacheFolder(path, max_bytes=10**6), number) for number in (1, 3)] == [False, True]
    assert names(path) == {part_of(content(number)).sha256 for number in (1, 2, 3)}


def test_what_was_used_longest_ago_goes_first(path: Path) -> None:
    cache = CacheFolder(path, max_bytes=3 * SIZE_BYTES)
    (path.parent / "notes.txt").write_text("not ours")
    for number in (1, 2, 3, 1, 4):  # 2 is the oldest use when 4 needs room
        use(cache, number)
    assert names(path) == {part_of(content(number)).sha256 for number in (3, 1, 4)}
    use(cache, 2)
    assert names(path) == {part_of(content(number)).sha256 for number in (1, 4, 2)}


def test_files_of_others_are_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_bytes(bytes(5 * SIZE_BYTES))
    cache = CacheFolder(path, max_bytes=SIZE_BYTES)
    assert [use(cache, number) for number in (1, 2, 2)] == [True, True, False]
    assert names(path) == {"notes.txt", part_of(content(2)).sha256}


@pytest.mark.parametrize("are_there_before", [False, True])
def test_nothing_is_removed_while_it_is_open(path: Path, are_there_before: bool) -> None:
    cache = CacheFolder(path, max_bytes=2 * SIZE_BYTES)
    if are_there_before:
        assert [use(cache, 1), use(cache, 2)] == [True, True]
    with opened(cache, content(1)) as first, opened(cache, content(2)) as second:
        with pytest.raises(OSError, match="no room for 1000 bytes in 2000") as caught:
            opened(cache, content(3))
        assert caught.value.errno == errno.ENOSPC
        assert names(path) == {part_of(content(number)).sha256 for number in (1, 2)}
        assert (first.read(), second.read()) == (content(1), content(2))
    assert use(cache, 3)


def test_part_that_another_process_finishes_meanwhile_is_taken_from_it(path: Path) -> None:
    class Late(CacheFolder):
        def _open_kept(self, part: Part) -> BinaryIO | None:
            file = super()._open_kept(part)
            if file is None:
                use(CacheFolder(path, max_bytes=10**6), 1)
            return file

    assert not use(Late(path, max_bytes=10**6), 1)
    assert names(path) == {part_of(content(1)).sha256}


def test_part_larger_than_the_cache_removes_nothing(path: Path) -> None:
    cache = CacheFolder(path, max_bytes=2 * SIZE_BYTES)
    use(cache, 1)
    with pytest.raises(OSError, match="no room for 2001 bytes in 2000"):
        opened(cache, content(2, size_bytes=2001))
    assert names(path) == {part_of(content(1)).sha256}


def test_no_more_than_half_of_the_free_disk_is_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CacheFolder(path, max_bytes=10**9)
    use(cache, 1)
    disk = SimpleNamespace(f_bavail=3, f_frsize=SIZE_BYTES)  # 4 without what is in the cache
    monkeypatch.setattr(os, "statvfs", lambda path: disk)
    assert cache.room_bytes() == 2 * SIZE_BYTES
    with pytest.raises(OSError, match="no room for 2001 bytes in 2000"):
        opened(cache, content(2, size_bytes=2001))


@pytest.mark.parametrize("damaged", [b"", bytes(SIZE_BYTES - 1), bytes(SIZE_BYTES + 1)])
def test_file_of_another_size_is_downloaded_again(path: Path, damaged: bytes) -> None:
    cache = CacheFolder(path, max_bytes=10 * SIZE_BYTES)
    use(cache, 1)
    (path / part_of(content(1)).sha256).write_bytes(damaged)
    assert [use(cache, 1), use(cache, 1)] == [True, False]


def test_discarded_file_is_downloaded_again_but_not_the_one_in_its_place(path: Path) -> None:
    cache = CacheFolder(path, max_bytes=10 * SIZE_BYTES)
    with opened(cache, content(1)) as damaged:
        cache.discard(part_of(content(1)), damaged)
        assert use(cache, 1)
        cache.discard(part_of(content(1)), damaged)
    assert not use(cache, 1)


def test_download_with_another_digest_is_not_kept(path: Path) -> None:
    cache = CacheFolder(path, max_bytes=10 * SIZE_BYTES)
    part = part_of(content(1))
    with pytest.raises(OSError, match=f"what was downloaded is not {part.path}"):
        cache.open(part, download_of(content(2)))
    assert names(path) == set()


def test_failed_download_leaves_nothing(path: Path) -> None:
    def download(file: BinaryIO) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    cache = CacheFolder(path, max_bytes=10 * SIZE_BYTES)
    with pytest.raises(KeyboardInterrupt):
        cache.open(part_of(content(1)), download)
    assert names(path) == set()


SIZES = st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30)


@given(steps=SIZES, room=st.integers(0, 12))
def test_bound_holds_whatever_is_opened_and_kept_open(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bool]], room: int
) -> None:
    """Part ``n`` has ``n`` bytes; some files stay open to the end."""
    path = tmp_path_factory.mktemp("parts")
    cache = CacheFolder(path, max_bytes=room)
    with ExitStack() as open_files:
        held: list[tuple[int, BinaryIO]] = []
        for number, is_held in steps:
            data = bytes([number]) * number
            try:
                file = opened(cache, data)
            except OSError as error:
                is_full = number + sum({n for n, _ in held}) > room
                if error.errno != errno.ENOSPC or not is_full:
                    raise
            else:
                assert file.read() == data
                open_files.enter_context(file)
                held.append((number, file)) if is_held else file.close()
            assert size_of(path) <= room
        for number, file in held:
            file.seek(0)
            assert file.read() == bytes([number]) * number


def run_together(target: Callable[..., None], *args: object, count: int = 6) -> None:
    processes = [PROCESSES.Process(target=target, args=(n, *args)) for n in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(40)
        assert process.exitcode == 0


def test_processes_that_want_one_part_download_it_once(path: Path, tmp_path: Path) -> None:
    start = PROCESSES.Barrier(6)

    def read(number: int, start: Barrier) -> None:
        def download(file: BinaryIO) -> None:
            (tmp_path / f"download-{number}").touch()
            time.sleep(0.2)  # the others arrive meanwhile
            file.write(content(1))

        start.wait()
        with CacheFolder(path, max_bytes=10**6).open(part_of(content(1)), download) as file:
            assert file.read() == content(1)
            start.wait()  # all of them read it at the same time: none waits for another to close

    run_together(read, start)
    assert len(list(tmp_path.glob("download-*"))) == 1
    assert names(path) == {part_of(content(1)).sha256}


def test_processes_read_what_they_opened_however_little_room_there_is(path: Path) -> None:
    room_bytes = 5 * SIZE_BYTES // 2  # two of seven parts, for five readers

    def read(seed: int) -> None:
        cache, rng, num_read = CacheFolder(path, max_bytes=room_bytes), random.Random(seed), 0
        for _ in range(150):
            data = content(rng.randrange(7))
            try:
                file = opened(cache, data)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                continue  # the others have all of it
            with file:
                with cache._locked():  # otherwise files come and go while they are counted
                    assert size_of(path) <= room_bytes
                assert file.read() == data
                num_read += 1
        assert num_read > 10

    run_together(read, count=5)
    assert size_of(path) <= room_bytes
    assert not list(path.glob("*.part"))


@pytest.mark.parametrize("is_next_waiting", [False, True])
def test_killed_download_is_taken_over(path: Path, is_next_waiting: bool) -> None:
    is_begun = PROCESSES.Event()

    def begin(is_begun: Event) -> None:
        def download(file: BinaryIO) -> None:
            file.write(b"half")
            file.flush()
            is_begun.set()
            time.sleep(60)

        CacheFolder(path, max_bytes=10**6).open(part_of(content(1)), download)

    def finish() -> None:
        assert use(CacheFolder(path, max_bytes=10**6), 1)

    first, second = (
        PROCESSES.Process(target=begin, args=(is_begun,)),
        PROCESSES.Process(target=finish),
    )
    first.start()
    assert is_begun.wait(20)
    assert names(path) == {f"{part_of(content(1)).sha256}.part"}
    if is_next_waiting:
        second.start()
        time.sleep(0.1)
    os.kill(first.pid or 0, signal.SIGKILL)
    first.join()
    if not is_next_waiting:
        second.start()
    second.join(20)
    assert second.exitcode == 0
    assert names(path) == {part_of(content(1)).sha256}


def test_what_a_killed_process_left_makes_room(path: Path) -> None:
    path.mkdir()
    (path / f"{part_of(content(1)).sha256}.part").write_bytes(bytes(2 * SIZE_BYTES))
    cache = CacheFolder(path, max_bytes=2 * SIZE_BYTES)
    assert use(cache, 2)
    assert names(path) == {part_of(content(2)).sha256}
