"""A copy is the same commit, wherever from and to, however often it breaks off on its way."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from storage import copying
from storage.blobs import open_blobs
from storage.commit import commit, is_committed, read_manifest, read_part, stage
from storage.copying import copy_commit, is_copied
from storage.errors import (
    AlreadyCommittedError,
    BlobMissingError,
    DigestMismatchError,
    NotCommittedError,
)
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME, Part
from tests.storage.test_commit import Killed

PARTS = {"model.safetensors": b"weights", "report.md": b"it held", "empty": b""}


def place(request: pytest.FixtureRequest, store: str, name: str) -> Location:
    """An unused location in ``store``."""
    if store == "local":
        return parse_location(request.getfixturevalue("tmp_path") / name)
    s3: Location = request.getfixturevalue("s3_location")
    return s3 / name


def publish(source: Location) -> Location:
    """Commit parts at ``source``, one blob of which has two names."""
    staged = stage(source, "block.bin", b"a block of images")
    parts = {**PARTS, "block.bin": staged, "renamed.bin": staged}
    commit(source, parts, kind="model", description={"name": "é"})
    return source


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def source(request: pytest.FixtureRequest) -> Location:
    """A location with a commit; every test that takes it runs once for each store."""
    return publish(place(request, request.param, "source"))


@pytest.fixture
def destination(request: pytest.FixtureRequest, source: Location) -> Location:
    """An unused location in the store that ``source`` is not in."""
    return place(request, "s3" if source.is_local else "local", "copies/copy")


def copy(source: Location, destination: Location) -> None:
    for _ in copy_commit(source, destination):
        pass


@pytest.mark.s3
@pytest.mark.parametrize("source_store", ["local", "s3"])
@pytest.mark.parametrize("destination_store", ["local", "s3"])
def test_copy_is_the_same_commit(
    source_store: str, destination_store: str, request: pytest.FixtureRequest
) -> None:
    source = publish(place(request, source_store, "source"))
    destination = place(request, destination_store, "copies/copy")
    assert not is_copied(source, destination)
    *_, last = copy_commit(str(source), str(destination))
    assert (last.parts_done, last.bytes_done) == (4, 31)
    assert is_copied(source, destination)
    manifest = read_manifest(destination)
    assert manifest == read_manifest(source)  # the commit id too
    before, after = open_blobs(source), open_blobs(destination)
    assert after.list() == before.list()
    assert {n: after.get(n) for n in after.list()} == {n: before.get(n) for n in before.list()}
    assert read_part(destination, "renamed.bin") == b"a block of images"
    assert list(copy_commit(source, destination)) == []  # nothing is left to do


def test_other_commit_is_never_rewritten(source: Location, destination: Location) -> None:
    other = commit(destination, {"part": b"other"}, kind="model", description={})
    for attempt in (is_copied, copy):
        with pytest.raises(AlreadyCommittedError, match=r"is not that of .*source.*new location"):
            attempt(source, destination)
    assert read_manifest(destination) == other
    assert len(open_blobs(destination).list()) == 2


def test_source_without_a_commit_is_named(location: Location, tmp_path: Path) -> None:
    stage(location, "part.bin", b"staged")
    with pytest.raises(NotCommittedError, match=r"has no MANIFEST\.json"):
        copy(location, parse_location(tmp_path / "copy"))


@pytest.mark.parametrize("damaged", [b"weightz", None])
def test_damaged_source_is_not_published(
    source: Location, destination: Location, damaged: bytes | None
) -> None:
    path = read_manifest(source).parts["model.safetensors"].path
    blobs = open_blobs(source)
    blobs.delete(path) if damaged is None else blobs.put(path, damaged)
    with pytest.raises((BlobMissingError, DigestMismatchError), match=path):
        copy(source, destination)
    assert not is_committed(destination)
    assert path not in open_blobs(destination).list()


@pytest.mark.parametrize("is_served", [False, True])
def test_copy_that_is_killed_goes_on_and_sends_nothing_twice(
    source: Location, destination: Location, is_served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.parallel_parts._THREADS", 1)
    sent: list[str] = []
    dies_at = 2

    def copy_part(name: str, part: Part, ends: object) -> None:
        if len(sent) == dies_at and not is_served:
            raise Killed
        real(name, part, ends)  # type: ignore[arg-type]
        sent.append(part.path)
        if len(sent) == dies_at + 1 and is_served:
            raise Killed

    real = copying._copy_part
    monkeypatch.setattr(copying, "_copy_part", copy_part)
    with pytest.raises(Killed):
        copy(source, destination)
    assert not is_committed(destination)
    assert sorted(sent) == open_blobs(destination).list()
    dies_at = 100
    copy(source, destination)
    assert is_copied(source, destination)
    assert len(sent) == len(set(sent)) == 4


def test_part_that_is_there_is_not_copied_again_unless_it_is_damaged(
    source: Location, tmp_path: Path
) -> None:
    destination = parse_location(tmp_path / "copy")
    parts = read_manifest(source).parts
    blobs = open_blobs(destination)
    blobs.put(parts["model.safetensors"].path, b"weights")
    blobs.put(parts["report.md"].path, b"it failed"[:7])  # of the same size
    blobs.put(parts["block.bin"].path, b"short")
    kept = (destination / parts["model.safetensors"].path).path
    os.utime(kept, (1, 1))
    copy(source, destination)
    assert kept.stat().st_mtime == 1
    assert read_part(destination, "report.md") == b"it held"
    assert read_part(destination, "block.bin") == b"a block of images"


@pytest.mark.parametrize("is_same", [True, False])
def test_rival_who_is_first_wins_and_an_equal_one_is_a_success(
    source: Location, destination: Location, is_same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival = open_blobs(source).get(MANIFEST_NAME) + (b"" if is_same else b" ")

    def copy_parts(*arguments: object) -> Iterator[object]:
        yield from real(*arguments)  # type: ignore[arg-type]
        open_blobs(destination).put_if_absent(MANIFEST_NAME, rival)

    real = copying.each_part
    monkeypatch.setattr(copying, "each_part", copy_parts)
    if is_same:
        copy(source, destination)
    else:
        with pytest.raises(AlreadyCommittedError, match="is not that of"):
            copy(source, destination)
    assert open_blobs(destination).get(MANIFEST_NAME) == rival


def test_nothing_is_left_in_the_temporary_folder(
    source: Location, destination: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    copy(source, destination)
    assert list((tmp_path / "temporary").iterdir()) == []
