import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

import pytest

from storage.blobs import BlobStore, open_blobs
from storage.commit import check_part, commit, is_committed, read_manifest, read_part, stage
from storage.errors import (
    AlreadyCommittedError,
    BlobMissingError,
    DigestMismatchError,
    NotCommittedError,
)
from storage.location import Location
from storage.manifest import MANIFEST_NAME, Part

T = TypeVar("T")
PARTS = {"model.safetensors": b"weights", "metrics.json": b"{}", "empty": b""}


class Killed(BaseException):
    """The process ends here; nothing after this line of it runs."""


class MortalBlobs:
    """A store whose user is killed at one request, before or after the store has served it."""

    def __init__(self, inner: BlobStore, *, dies_at: int, is_served: bool) -> None:
        self._inner = inner
        self._dies_at = dies_at
        self._is_served = is_served
        self.num_requests = 0

    def put(self, name: str, data: bytes) -> None:
        self._request(lambda: self._inner.put(name, data))

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._request(lambda: self._inner.put_if_absent(name, data))

    def get(self, name: str) -> bytes:
        return self._request(lambda: self._inner.get(name))

    def open(self, name: str) -> BinaryIO:
        return self._request(lambda: self._inner.open(name))

    def exists(self, name: str) -> bool:
        return self._request(lambda: self._inner.exists(name))

    def list(self, prefix: str = "") -> list[str]:
        return self._request(lambda: self._inner.list(prefix))

    def delete(self, name: str) -> None:
        self._request(lambda: self._inner.delete(name))

    def _request(self, call: Callable[[], T]) -> T:
        is_last = self.num_requests == self._dies_at
        self.num_requests += 1
        if is_last and not self._is_served:
            raise Killed
        result = call()
        if is_last:
            raise Killed
        return result


class LostAnswerBlobs(MortalBlobs):
    """A store whose answer to the conditional write is lost, so that the client asks again."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        super().put_if_absent(name, data)
        super().put_if_absent(name, data)


class RivalBlobs(MortalBlobs):
    """A store where somebody else commits just before our manifest arrives."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        self._inner.put_if_absent(name, b"the rival's")
        super().put_if_absent(name, data)


def immortal(kind: type[MortalBlobs], location: Location) -> MortalBlobs:
    return kind(open_blobs(location), dies_at=10**9, is_served=True)


def publish(location: Location, blobs: BlobStore | None = None) -> None:
    commit(location, PARTS, kind="model", description={"round": 3}, blobs=blobs)


def test_commit_is_read_back(location: Location) -> None:
    assert not is_committed(location)
    manifest = commit(location, PARTS, kind="model", description={"sizes": (1, 2), "name": "é"})
    assert is_committed(str(location))
    assert read_manifest(str(location)) == manifest
    assert manifest.kind == "model"
    assert manifest.description == {"sizes": [1, 2], "name": "é"}
    assert {name: read_part(location, name) for name in PARTS} == PARTS
    assert read_part(location, "empty", manifest=manifest) == b""


def test_stored_names_keep_their_suffix(location: Location) -> None:
    manifest = commit(location, PARTS, kind="model", description={})
    part = manifest.parts["model.safetensors"]
    assert part.path == f"model.{part.sha256}.safetensors"
    assert sorted(open_blobs(location).list()) == sorted(
        [MANIFEST_NAME, *(part.path for part in manifest.parts.values())]
    )


def test_second_commit_is_refused_and_changes_nothing(location: Location) -> None:
    publish(location)
    before = read_manifest(location)
    with pytest.raises(AlreadyCommittedError, match=r"already has a MANIFEST\.json.*new location"):
        commit(location, {"other": b"x"}, kind="dataset", description={})
    assert read_manifest(location) == before
    assert len(open_blobs(location).list()) == len(PARTS) + 1


@pytest.mark.parametrize("is_served", [False, True])
def test_reader_sees_nothing_or_everything_wherever_the_writer_is_killed(
    location: Location, is_served: bool
) -> None:
    counted = immortal(MortalBlobs, location / "whole")
    publish(location / "whole", counted)
    assert counted.num_requests == len(PARTS) + 2  # is one there?, the blobs, the manifest
    for dies_at in range(counted.num_requests):
        place = location / str(dies_at)
        with pytest.raises(Killed):
            publish(place, MortalBlobs(open_blobs(place), dies_at=dies_at, is_served=is_served))
        is_manifest_there = is_served and dies_at == counted.num_requests - 1
        assert is_committed(place) == is_manifest_there
        if not is_manifest_there:
            with pytest.raises(NotCommittedError):
                read_manifest(place)
            publish(place)  # what the dead writer left is not in the way
        assert {name: read_part(place, name) for name in PARTS} == PARTS


def test_rival_threads_have_one_winner(tmp_path: Path) -> None:
    start, winners, losers = threading.Barrier(6), [], []

    def publish_own(number: int) -> None:
        start.wait()
        try:
            commit(tmp_path, {"part": bytes([number])}, kind="model", description={"by": number})
        except AlreadyCommittedError:
            losers.append(number)
        else:
            winners.append(number)

    threads = [threading.Thread(target=publish_own, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 5)
    assert read_manifest(tmp_path).description == {"by": winners[0]}
    assert read_part(tmp_path, "part") == bytes(winners)


def test_rival_at_the_last_moment_wins(location: Location) -> None:
    with pytest.raises(AlreadyCommittedError, match="what is committed is never rewritten"):
        publish(location, immortal(RivalBlobs, location))
    assert open_blobs(location).get(MANIFEST_NAME) == b"the rival's"


def test_own_manifest_met_after_a_lost_answer_is_a_success(location: Location) -> None:
    publish(location, immortal(LostAnswerBlobs, location))
    assert read_part(location, "metrics.json") == b"{}"


@pytest.mark.parametrize("damaged", [b"weightz", b"weight", b""])
def test_changed_bytes_are_noticed(location: Location, damaged: bytes) -> None:
    publish(location)
    manifest = read_manifest(location)
    open_blobs(location).put(manifest.parts["model.safetensors"].path, damaged)
    message = rf"model\..* has {len(damaged)} bytes .* expected 7 bytes"
    with pytest.raises(DigestMismatchError, match=message):
        read_part(location, "model.safetensors")
    with pytest.raises(DigestMismatchError, match=message):
        check_part(location, "model.safetensors", manifest=manifest)
    check_part(location, "metrics.json", manifest=manifest)


def test_deleted_blob_is_named(location: Location) -> None:
    publish(location)
    path = read_manifest(location).parts["model.safetensors"].path
    open_blobs(location).delete(path)
    with pytest.raises(BlobMissingError, match=path):
        read_part(location, "model.safetensors")


def test_unknown_part_is_answered_with_those_there_are(location: Location) -> None:
    publish(location)
    message = "is a model without a part 'modl'; .* empty, metrics.json, model.safetensors"
    with pytest.raises(NotCommittedError, match=message):
        read_part(location, "modl")


def test_uncommitted_location_is_named(location: Location) -> None:
    open_blobs(location).put("model.safetensors", b"not a commit")
    with pytest.raises(NotCommittedError, match=r"kept|tests") as caught:
        read_manifest(location)
    assert str(location) in str(caught.value)
    assert "has no MANIFEST.json" in str(caught.value)


def test_wrong_arguments_are_refused_before_anything_is_written(location: Location) -> None:
    with pytest.raises(ValueError, match="part name is 'a/b'"):
        commit(location, {"ok": b"", "a/b": b""}, kind="model", description={})
    with pytest.raises(ValueError, match=r"description\.lr is nan"):
        commit(location, {"ok": b""}, kind="model", description={"lr": float("nan")})
    assert open_blobs(location).list() == []


def test_staged_parts_are_seen_only_after_the_commit(location: Location) -> None:
    staged = [stage(location, f"block-{n}.bin", bytes([n])) for n in range(3)]
    assert stage(str(location), "block-1.bin", b"\x01") == staged[1]
    assert not is_committed(location)
    with pytest.raises(NotCommittedError):
        read_part(location, "block-0.bin")
    parts = {"block-0.bin": staged[0], "renamed.bin": staged[2], "report.json": b"{}"}
    manifest = commit(location, parts, kind="dataset", description={})
    assert manifest.parts["block-0.bin"] == staged[0]
    contents = {name: read_part(location, name) for name in parts}
    assert contents == {"block-0.bin": b"\x00", "renamed.bin": b"\x02", "report.json": b"{}"}
    with pytest.raises(NotCommittedError, match=r"without a part 'block-1\.bin'"):
        read_part(location, "block-1.bin")


def test_staged_parts_are_not_stored_again(location: Location) -> None:
    staged = {str(number): stage(location, "block", bytes([number])) for number in range(9)}
    counted = immortal(MortalBlobs, location)
    commit(location, staged, kind="dataset", description={}, blobs=counted)
    assert counted.num_requests == 3  # is one there?, the listing, the manifest


def test_vanished_staged_part_is_refused(location: Location) -> None:
    kept, lost = stage(location, "kept", b"kept"), stage(location, "lost", b"lost")
    open_blobs(location).delete(lost.path)
    elsewhere = stage(location / "elsewhere", "part", b"data")
    for name, part in (("lost", lost), ("part", elsewhere)):
        with pytest.raises(BlobMissingError, match=rf"/{part.path}.* part '{name}' was staged"):
            commit(location, {"kept": kept, name: part}, kind="dataset", description={})
        assert not is_committed(location)
    commit(location, {"kept": kept, "lost": b"lost"}, kind="dataset", description={})
    assert read_part(location, "lost") == b"lost"


def test_part_with_a_folder_in_its_name_is_not_staged(location: Location) -> None:
    with pytest.raises(ValueError, match="part name is 'a/b', not a plain file name"):
        stage(location, "a/b", b"")
    assert open_blobs(location).list() == []


def test_part_may_be_kept_as_json_between_staging_and_commit(location: Location) -> None:
    kept = json.dumps(vars(stage(location, "part", b"data")))
    commit(location, {"part": Part(**json.loads(kept))}, kind="dataset", description={})
    assert read_part(location, "part") == b"data"
