"""What every store does; each test runs on disk and on S3."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blobs import open_blobs
from storage.errors import (
    AlreadyCommittedError,
    BlobMissingError,
    LocationError,
    UnavailableError,
)
from storage.location import Location, parse_location


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 1000])
def test_blob_comes_back_as_it_was_put(location: Location, data: bytes) -> None:
    blobs = open_blobs(location)
    blobs.put("folder/name.bin", data)
    assert blobs.get("folder/name.bin") == data
    assert blobs.exists("folder/name.bin")


def test_blob_larger_than_one_request_comes_back_as_it_was_put(location: Location) -> None:
    data = os.urandom(1 << 20) * 33  # one MiB more than what goes in a single request
    blobs = open_blobs(location)
    blobs.put("large", data)
    assert blobs.get("large") == data


def test_put_replaces(location: Location) -> None:
    blobs = open_blobs(location)
    blobs.put("name", b"old and longer")
    blobs.put("name", b"new")
    assert blobs.get("name") == b"new"


def test_put_if_absent_leaves_what_is_there(location: Location) -> None:
    blobs = open_blobs(location)
    blobs.put_if_absent("name", b"first")
    with pytest.raises(AlreadyCommittedError, match=r"/name.* already exists"):
        blobs.put_if_absent("name", b"second")
    assert blobs.get("name") == b"first"
    assert blobs.list() == ["name"]


def test_missing_blob_is_named(location: Location) -> None:
    blobs = open_blobs(location)
    blobs.put("other", b"")
    for name in ("nothing", "oth", "other/below"):
        assert not blobs.exists(name)
        with pytest.raises(BlobMissingError, match=f"{name}.* does not exist"):
            blobs.get(name)
        with pytest.raises(BlobMissingError, match=f"{name}.* does not exist"):
            blobs.open(name)


def test_list_is_sorted_and_filtered_by_prefix(location: Location) -> None:
    blobs = open_blobs(location)
    assert blobs.list() == []
    for name in ("b", "a/2", "a/10", "ab"):
        blobs.put(name, b"")
    assert blobs.list() == ["a/10", "a/2", "ab", "b"]
    assert blobs.list("a") == ["a/10", "a/2", "ab"]
    assert blobs.list("a/") == ["a/10", "a/2"]


def test_delete_removes_and_may_be_repeated(location: Location) -> None:
    blobs = open_blobs(location)
    blobs.put("name", b"x")
    blobs.delete("name")
    blobs.delete("name")
    assert not blobs.exists("name")


def test_open_blob_can_be_read_in_pieces(location: Location) -> None:
    blobs = open_blobs(location)
    blobs.put("name", bytes(range(100)))
    with blobs.open("name") as file:
        assert file.seek(-10, os.SEEK_END) == 90
        assert file.read(4) == bytes(range(90, 94))
        assert file.tell() == 94
        assert file.seek(2, os.SEEK_CUR) == 96
        assert file.read() == bytes(range(96, 100))
        assert file.read(5) == b""
        file.seek(0)
        assert file.read(3) == bytes(range(3))


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../outside"])
def test_name_outside_the_location_is_refused(location: Location, name: str) -> None:
    blobs = open_blobs(location)
    with pytest.raises(ValueError, match=f"name is {name!r}"):
        blobs.put(name, b"")


def test_two_locations_do_not_see_each_other(location: Location) -> None:
    open_blobs(location / "a").put("name", b"a")
    open_blobs(location / "ab").put("name", b"b")
    assert open_blobs(location / "a").list() == ["name"]
    assert open_blobs(str(location)).list() == ["a/name", "ab/name"]


@settings(max_examples=20, deadline=None)
@given(data=st.binary(max_size=2000))
def test_any_bytes_survive_on_disk(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    blobs = open_blobs(tmp_path_factory.getbasetemp() / "any-bytes")
    blobs.put("name", data)
    assert blobs.get("name") == data


def test_rival_threads_have_one_winner_on_disk(tmp_path: Path) -> None:
    blobs, start, winners = open_blobs(tmp_path), threading.Barrier(8), []

    def write(number: int) -> None:
        start.wait()
        try:
            blobs.put_if_absent("name", bytes([number]) * 10_000)
        except AlreadyCommittedError:
            return
        winners.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(winners) == 1
    assert blobs.get("name") == bytes(winners) * 10_000
    assert os.listdir(tmp_path) == ["name"]


def test_reader_beside_a_writer_sees_the_old_blob_or_the_new(
    location: Location, tmp_path: Path
) -> None:
    blobs, contents = open_blobs(location), [bytes([n]) * 500_000 for n in range(2)]
    (tmp_path / "source").write_bytes(contents[1])
    blobs.put("name", contents[0])
    is_over, seen = threading.Event(), set()

    def read() -> None:
        while not is_over.is_set():
            seen.add(blobs.get("name"))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50 if location.is_local else 5):
        blobs.put_file("name", tmp_path / "source")
        blobs.put("name", contents[0])
    is_over.set()
    reader.join()
    assert seen <= set(contents)


def test_interrupted_write_leaves_nothing_on_disk(tmp_path: Path) -> None:
    blobs = open_blobs(tmp_path)
    with pytest.raises(TypeError):
        blobs.put("name", "text is not bytes")  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


def test_temporary_files_of_killed_writers_are_not_listed(tmp_path: Path) -> None:
    (tmp_path / ".ringfence-0123.tmp").write_bytes(b"half")
    assert open_blobs(tmp_path).list() == []


def test_file_as_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocationError, match=r"file/name cannot be accessed"):
        open_blobs(tmp_path / "file").put("name", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(LocationError, match=r"folder cannot be accessed"):
        open_blobs(tmp_path).get("folder")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_forbidden_folder_is_refused_by_name(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LocationError, match=r"name cannot be accessed \(Permission denied\)"):
        open_blobs(tmp_path).put("name", b"")


@pytest.mark.s3
def test_missing_bucket_is_named_by_every_verb(s3_location: Location) -> None:
    text = str(s3_location).replace("s3://tests/", "s3://no-such-bucket/")
    blobs = open_blobs(text)
    message = r"s3://no-such-bucket/.*NoSuchBucket.*check its name"
    for call in (
        lambda: blobs.get("x"),
        lambda: blobs.put("x", b""),
        lambda: blobs.put_if_absent("x", b""),
        lambda: blobs.exists("x"),
        lambda: blobs.list(),
        lambda: blobs.delete("x"),
        lambda: blobs.open("x"),
    ):
        with pytest.raises(LocationError, match=message):
            call()


@pytest.mark.s3
def test_endpoint_may_come_from_the_environment(
    s3_location: Location, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_blobs(s3_location).put("name", b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{s3_endpoint}")
    # No region either: a store of one's own has none.
    assert open_blobs(f"s3://tests/{s3_location.key}").get("name") == b"x"


@pytest.mark.s3
def test_bucket_root_is_a_location(s3_location: Location) -> None:
    blobs = open_blobs(str(s3_location).replace(f"tests/{s3_location.key}", "whole"))
    blobs.put("name", b"x")
    assert blobs.list() == ["name"]


@pytest.mark.s3
def test_missing_credentials_are_said(
    s3_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(LocationError, match="needs credentials and has none"):
        open_blobs(s3_location).get("x")


@pytest.mark.s3
def test_missing_profile_is_said(s3_location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(LocationError, match="ProfileNotFound"):
        open_blobs(s3_location)


@pytest.mark.s3
def test_unreachable_endpoint_is_named(
    s3_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "0.3")
    # Port 1 of this machine: refused at once, and never off it.
    location = parse_location("s3://tests/x?endpoint_override=127.0.0.1:1&scheme=http")
    with pytest.raises(UnavailableError, match=r"s3://tests/x.*127\.0\.0\.1:1.* answers"):
        open_blobs(location).get("x")
