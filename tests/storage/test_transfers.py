"""Parts that are files: stored and fetched in pieces, on disk and on S3."""

import hashlib
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from storage.blobs import LocalBlobs, open_blobs
from storage.commit import commit, fetch_part, read_manifest, read_part, stage
from storage.errors import (
    BlobMissingError,
    DigestMismatchError,
    LocationError,
    NotCommittedError,
)
from storage.location import Location

MIB = 2**20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "source" / "weights.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights of the model")
    return path


@pytest.mark.parametrize("size", [0, 1, MIB + 1, 33 * MIB])  # the last goes up in parts
def test_file_comes_back_as_it_was_put(location: Location, tmp_path: Path, size: int) -> None:
    source, back = tmp_path / "source", tmp_path / "new" / "folder" / "back"
    source.write_bytes(os.urandom(size))
    blobs = open_blobs(location)
    blobs.put_file("folder/name", source)
    blobs.get_file("folder/name", back)
    assert back.read_bytes() == source.read_bytes()
    assert blobs.get("folder/name") == source.read_bytes()
    assert blobs.list() == ["folder/name"]
    assert [path.name for path in back.parent.iterdir()] == ["back"]


def test_put_file_and_get_file_replace(location: Location, file: Path) -> None:
    blobs = open_blobs(location)
    blobs.put("name", b"old and longer than what comes after it")
    blobs.put_file("name", file)
    assert blobs.get("name") == file.read_bytes()
    blobs.put("name", b"new")
    blobs.get_file("name", file)
    assert file.read_bytes() == b"new"


def test_missing_blob_leaves_the_file_alone(location: Location, file: Path) -> None:
    with pytest.raises(BlobMissingError, match=r"nothing.* does not exist"):
        open_blobs(location).get_file("nothing", file)
    assert file.read_bytes() == b"weights of the model"
    assert list(file.parent.iterdir()) == [file]


def test_source_that_cannot_be_read_is_named(location: Location, file: Path) -> None:
    for path in (file.parent, file / "below", file.parent / "missing"):
        for call in (
            lambda path: open_blobs(location).put_file("name", path),
            lambda path: stage(location, "name", path),
        ):
            with pytest.raises(LocationError, match=f"{path} cannot be accessed"):
                call(path)
    assert open_blobs(location).list() == []


def test_target_that_cannot_be_written_is_named(location: Location, file: Path) -> None:
    open_blobs(location).put("name", b"x")
    for path in (file.parent, file / "below"):
        with pytest.raises(LocationError, match=f"{path} cannot be accessed"):
            open_blobs(location).get_file("name", path)


def test_file_is_committed_and_fetched(location: Location, file: Path, tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(os.urandom(MIB) * 2)
    staged = stage(location, "staged.bin", file)
    assert staged == stage(location, "staged.bin", file.read_bytes())
    parts = {"model.safetensors": large, "metrics.json": b"{}", "staged.bin": staged}
    manifest = commit(location, parts, kind="model", description={})
    part = manifest.parts["model.safetensors"]
    assert part.sha256 == hashlib.sha256(large.read_bytes()).hexdigest()
    assert part.path == f"model.{part.sha256}.safetensors"
    assert part.size_bytes == 2 * MIB
    for name, content in {
        "model.safetensors": large.read_bytes(),
        "metrics.json": b"{}",
        "staged.bin": file.read_bytes(),
    }.items():
        fetch_part(location, name, tmp_path / "fetched" / name)
        fetch_part(str(location), name, tmp_path / "fetched" / name, manifest=manifest)
        assert (tmp_path / "fetched" / name).read_bytes() == content == read_part(location, name)
    assert len(list((tmp_path / "fetched").iterdir())) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: data + b"x",
    ],
    ids=["flipped bit", "truncated", "emptied", "appended"],
)
def test_damaged_part_never_gets_its_name(
    damage: Callable[[bytes], bytes], location: Location, file: Path
) -> None:
    manifest = commit(location, {"weights.bin": file}, kind="model", description={})
    path, before = manifest.parts["weights.bin"].path, file.read_bytes()
    open_blobs(location).put(path, damage(before))
    with pytest.raises(DigestMismatchError, match=rf"{path}.* has {len(damage(before))} bytes"):
        fetch_part(location, "weights.bin", file)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]
    with pytest.raises(DigestMismatchError, match=path):
        read_part(location, "weights.bin")


def test_swapped_blobs_are_noticed(location: Location, tmp_path: Path) -> None:
    manifest = commit(location, {"a": b"first", "b": b"other"}, kind="model", description={})
    blobs, paths = open_blobs(location), [manifest.parts[name].path for name in "ab"]
    contents = [blobs.get(path) for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        blobs.put(path, content)
    for name in "ab":
        with pytest.raises(DigestMismatchError, match=f"/{name}\\."):
            fetch_part(location, name, tmp_path / name)
        with pytest.raises(DigestMismatchError, match=f"/{name}\\."):
            read_part(location, name)


def test_unknown_part_is_not_fetched(location: Location, file: Path) -> None:
    with pytest.raises(NotCommittedError, match="has no MANIFEST"):
        fetch_part(location, "weights.bin", file)
    commit(location, {"a": b"x"}, kind="model", description={})
    with pytest.raises(NotCommittedError, match=r"without a part 'weights\.bin'"):
        fetch_part(location, "weights.bin", file)


def test_file_that_is_still_written_to_is_not_committed(location: Location, file: Path) -> None:
    blobs = open_blobs(location)
    put_file = blobs.put_file

    def put_while_it_grows(name: str, path: Path) -> None:
        put_file(name, path)
        with path.open("ab") as growing:
            growing.write(b"more")

    blobs.put_file = put_while_it_grows  # type: ignore[method-assign]
    message = f"part 'weights.bin' is {file}, which was written to while it was stored"
    with pytest.raises(ValueError, match=message):
        commit(location, {"weights.bin": file}, kind="model", description={}, blobs=blobs)
    with pytest.raises(NotCommittedError):
        read_manifest(location)


def test_file_larger_than_memory_would_do(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with source.open("wb") as file:
        file.truncate(64 * MIB)  # a hole: takes no room on the disk
    tracemalloc.start()
    commit(tmp_path / "kept", {"weights.bin": source}, kind="model", description={})
    fetch_part(tmp_path / "kept", "weights.bin", tmp_path / "back")
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 * MIB
    assert (tmp_path / "back").stat().st_size == 64 * MIB


def test_link_whose_answer_was_lost_is_a_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_location: Location
) -> None:
    link = os.link

    def link_twice(source: Path, target: Path) -> None:  # what an NFS client may do
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", link_twice)
    blobs = LocalBlobs(tmp_path_location)
    blobs.put_if_absent("name", b"ours")
    assert blobs.get("name") == b"ours"
    assert blobs.list() == ["name"]
