"""A commit that is cut off anywhere, and two at once: readers see nothing or all of one."""

import itertools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.blobs import open_blobs
from storage.commit import commit, fetch_part, is_committed, read_manifest, read_part
from storage.errors import (
    AlreadyCommittedError,
    NotCommittedError,
    StorageError,
)
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME
from storage.s3_blobs import S3Blobs
from tests.storage.cut_off_commit import PARTS
from tests.storage.faulty_proxy import Fault, FaultyProxy, Request
from tests.storage.test_round_trips import PARTS as IN_PARTS
from tests.storage.test_round_trips import THRESHOLD, content


def check_all_or_nothing(location: Location, expected: dict[str, bytes]) -> bool:
    """Whether ``location`` is committed; it is a whole commit of ``expected`` then."""
    blobs = open_blobs(location)
    if not is_committed(location):
        with pytest.raises(NotCommittedError, match="nothing is committed there"):
            read_manifest(location, blobs=blobs)
        return False
    manifest = read_manifest(location, blobs=blobs)
    found = {
        name: read_part(location, name, manifest=manifest, blobs=blobs) for name in manifest.parts
    }
    assert found == expected
    return True


def test_commit_cut_off_at_any_file_operation_is_all_or_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.storage.cut_off_commit", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    num_operations = int(done.stdout)
    # Per blob a folder, an open file, its sync, its name, the folder's sync, and the tidying up.
    assert num_operations > 4 * 5
    expected = {**PARTS, "c.bin": (tmp_path / "source").read_bytes()}
    committed = []
    for number in range(num_operations + 1):
        place = parse_location(tmp_path / str(number))
        committed.append(check_all_or_nothing(place, expected))
        assert not [name for name in open_blobs(place).list() if ".tmp" in name]
        if not committed[-1]:
            commit(place, expected, kind="model", description={})
            assert check_all_or_nothing(place, expected)
    # There is one moment before which nothing is visible, and after which everything is.
    assert committed == sorted(committed)
    assert committed[-1]
    assert not committed[0]


class Killed(Exception):  # noqa: N818 - not one of the project's
    """Nothing that this client sends or receives from now on takes place."""


def kill_after(num_requests: int, blobs: S3Blobs, *, is_next_served: bool) -> None:
    """Let ``blobs`` get so many answers; one more request is carried out if ``is_next_served``."""
    numbers = itertools.count(1)
    sent = 0

    def before(**_: object) -> None:
        nonlocal sent
        sent = next(numbers)
        if sent > num_requests + is_next_served:
            raise Killed

    def after(**_: object) -> None:
        if sent > num_requests:
            raise Killed

    blobs._client.meta.events.register("before-send.s3", before)
    blobs._client.meta.events.register("response-received.s3", after)


@pytest.mark.s3
@pytest.mark.parametrize("is_next_served", [False, True])
def test_commit_cut_off_after_any_request_is_all_or_nothing(
    is_next_served: bool, s3_location: Location, tmp_path: Path
) -> None:
    expected = {"a.json": b"{}", "large.bin": content(THRESHOLD + 1)}
    source = tmp_path / "source"
    source.write_bytes(expected["large.bin"])
    parts = {**expected, "large.bin": source}
    committed = []
    for number in itertools.count():
        place = s3_location / str(number)
        blobs = S3Blobs(place, transfers=IN_PARTS)
        kill_after(number, blobs, is_next_served=is_next_served)
        try:
            commit(place, parts, kind="model", description={}, blobs=blobs)
        except Killed:
            committed.append(check_all_or_nothing(place, expected))
        else:
            break
        if committed[-1]:
            with pytest.raises(AlreadyCommittedError, match="never rewritten"):
                commit(place, expected, kind="dataset", description={})
        else:
            commit(place, expected, kind="model", description={})
            assert check_all_or_nothing(place, expected)
    # Is one there?, a blob, four requests for the other, the manifest, and the manifest once more,
    # so that the store proves that it creates nothing twice.
    num_before = 6 if is_next_served else 7
    assert committed == [False] * num_before + [True] * (8 - num_before)


def rival_commits(places: list[Location], *, kind: str = "model") -> tuple[list[int], list[int]]:
    """Commit to all ``places`` at once: who won, and who was told that somebody else had."""
    start, winners, losers = threading.Barrier(len(places)), [], []

    def publish(number: int) -> None:
        parts = {"part": bytes([number])}
        start.wait()
        try:
            commit(places[number], parts, kind=kind, description={"by": number})
        except AlreadyCommittedError:
            losers.append(number)
        else:
            winners.append(number)

    threads = [threading.Thread(target=publish, args=(n,)) for n in range(len(places))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return winners, losers


@pytest.mark.parametrize("decide", [lambda _: None, lambda r: twice(r)], ids=["once", "twice"])
@pytest.mark.s3
def test_one_of_two_committers_wins_on_s3(
    decide: Callable[[Request], Fault | None],
    proxied_location: Location,
    s3_location: Location,
    s3_proxy: FaultyProxy,
) -> None:
    s3_proxy.decide = decide
    for number in range(10):
        winners, losers = rival_commits([proxied_location / str(number)] * 2)
        assert (len(winners), len(losers)) == (1, 1)
        assert read_part(s3_location / str(number), "part") == bytes(winners)
        assert read_manifest(s3_location / str(number)).description == {"by": winners[0]}


def twice(request: Request) -> Fault | None:
    """Deliver every write twice."""
    return Fault.DUPLICATE if request.method == "PUT" else None


def test_one_of_many_committers_wins_on_disk(tmp_path: Path) -> None:
    for number in range(50):
        place = parse_location(tmp_path / str(number))
        winners, losers = rival_commits([place] * 3)
        assert (len(winners), len(losers)) == (1, 2)
        assert read_part(place, "part") == bytes(winners)


def test_flipped_bit_in_the_manifest_is_noticed_or_changes_no_bytes(
    tmp_path_location: Location, tmp_path: Path
) -> None:
    commit(tmp_path_location, {"part": b"content"}, kind="model", description={})
    blobs = open_blobs(tmp_path_location)
    manifest = blobs.get(MANIFEST_NAME)
    for place in range(len(manifest)):
        damaged = bytearray(manifest)
        damaged[place] ^= 2
        blobs.put(MANIFEST_NAME, bytes(damaged))
        try:
            fetch_part(tmp_path_location, "part", tmp_path / "back")
        except StorageError:
            continue
        assert (tmp_path / "back").read_bytes() == b"content"


def test_reader_beside_a_committer_sees_nothing_or_all(location: Location) -> None:
    expected = {str(number): bytes(1000) for number in range(5)}
    blobs = open_blobs(location)
    seen: list[bool] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                manifest = read_manifest(location, blobs=blobs)
            except NotCommittedError:
                seen.append(False)
            else:
                found = {name: read_part(location, name, blobs=blobs) for name in manifest.parts}
                assert found == expected
                seen.append(True)

    reader = threading.Thread(target=read)
    reader.start()
    commit(location, expected, kind="model", description={})
    done.set()
    reader.join()
    assert seen == sorted(seen)
