import threading
import time
from collections.abc import Callable

import pytest

from storage import parallel_parts
from storage.blobs import open_blobs
from storage.commit import commit
from storage.errors import BlobMissingError, DigestMismatchError
from storage.location import Location
from storage.manifest import Part
from storage.parallel_parts import Progress, each_part, read_through

PARTS = {f"{n}": Part(path=f"{n}.bin", sha256="0" * 64, size_bytes=10) for n in range(20)}


def test_every_part_is_worked_on_once_and_counted() -> None:
    seen: list[str] = []

    def work(name: str, part: Part, count: Callable[[int], None]) -> None:
        seen.append(name)
        for _ in range(part.size_bytes):
            count(1)

    *_, last = each_part(PARTS, work)
    assert sorted(seen) == sorted(PARTS)
    assert last == Progress(parts_done=20, num_parts=20, bytes_done=200, num_bytes=200)


def test_names_of_one_blob_are_one_piece_of_work() -> None:
    twice = {"a": PARTS["1"], "b": PARTS["1"]}
    (last,) = each_part(twice, lambda _, part, count: count(part.size_bytes))
    assert last == Progress(parts_done=1, num_parts=1, bytes_done=10, num_bytes=10)
    (nothing,) = each_part({}, lambda *_: None)
    assert nothing == Progress(0, 0, 0, 0)


def test_progress_is_told_while_a_part_is_in_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_parts, "_REPORT_SECONDS", 0.01)
    go_on = threading.Event()

    def work(_: str, part: Part, count: Callable[[int], None]) -> None:
        count(4)
        assert go_on.wait(timeout=10)
        count(part.size_bytes - 4)

    told = []
    for progress in each_part({"one": PARTS["1"]}, work):
        told.append((progress.parts_done, progress.bytes_done))
        if told[-1][1] == 4:
            go_on.set()
    assert (0, 4) in told
    assert told[-1] == (1, 10)


def test_number_of_threads_is_bounded() -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work(*_: object) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    list(each_part(PARTS, work))
    assert 1 < most <= parallel_parts._THREADS


@pytest.mark.parametrize("is_listened_to", [True, False])
def test_after_a_failure_or_a_deaf_caller_nothing_further_begins(
    is_listened_to: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_parts, "_REPORT_SECONDS", 0.01)
    begun, ended = [], []

    def work(name: str, _: Part, count: Callable[[int], None]) -> None:
        begun.append(name)
        if is_listened_to and name == "0":
            raise BlobMissingError("part 0 is not there")
        try:
            while True:
                count(1)
                time.sleep(0.001)
        finally:
            ended.append(name)

    steps = each_part(PARTS, work)
    if is_listened_to:
        with pytest.raises(BlobMissingError, match="part 0"):
            list(steps)
    else:
        next(steps)
        steps.close()  # type: ignore[attr-defined]
    # Those in hand were told to stop, and did; of the others none was begun.
    assert len(begun) <= parallel_parts._THREADS + 1
    assert len(ended) == len(begun) - is_listened_to


@pytest.mark.parametrize("damaged", [b"weightz", b"weights and more", b""])
def test_damaged_part_is_noticed_in_pieces(
    location: Location, damaged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel_parts, "_CHUNK_BYTES", 3)
    parts = {"model.bin": b"weights"}
    (part,) = commit(location, parts, kind="model", description={}).parts.values()
    blobs, read = open_blobs(location), list[int]()
    read_through(part, location=location, blobs=blobs, count=read.append)
    assert read == [3, 3, 1]
    blobs.put(part.path, damaged)
    with pytest.raises(DigestMismatchError, match=rf"model\..* has {len(damaged)} bytes"):
        read_through(part, location=location, blobs=blobs, count=read.append)
    blobs.delete(part.path)
    with pytest.raises(BlobMissingError, match=part.path):
        read_through(part, location=location, blobs=blobs, count=read.append)
