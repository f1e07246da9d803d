"""What may go goes; what is committed, in use or somebody else's stays, whatever is asked."""

import os
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from storage.blobs import open_blobs
from storage.commit import commit, read_manifest, read_part, stage
from storage.errors import LocationError, NotCommittedError
from storage.inventory import STATE_KIND
from storage.leftovers import Leftover, leftovers, remove
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME
from tests.storage.test_inventory import begin_run, publish

HOUR = 3600.0
LATER = time.time() + 48 * HOUR
"""Two days from now, so that what a test has just written is old."""


def find(location: Location, *, now: float = LATER) -> dict[str, str]:
    """What is left over after a day, by its name below ``location``."""
    found = leftovers(location, older_than_seconds=24 * HOUR, now=now)
    root = f"{location.name}/"
    return {piece.entry.name.removeprefix(root): piece.what for piece in found}


def delete_all(location: Location) -> list[Leftover]:
    return list(remove(leftovers(location, older_than_seconds=0), older_than_seconds=0))


def test_only_what_no_manifest_names_is_left_over(location: Location) -> None:
    publish(location / "done")
    rival = stage(location / "done", "part.bin", b"the rival's, who came second")
    lost = stage(location / "never", "block.parquet", b"staged")
    nameless = stage(location / "never", "block", b"staged")
    begin_run(location / "done").put("train/checkpoint_1/state.json", b"{}")
    begin_run(location / "never").put("blocks/0.json", b"{}")
    assert find(location) == {
        f"done/{rival.path}": "part never committed",
        f"never/{lost.path}": "part never committed",
        f"never/{nameless.path}": "part never committed",
        "done.run/recipe.json": "state of a finished run",
        "done.run/train/checkpoint_1/state.json": "state of a finished run",
        "never.run/recipe.json": "state of an unfinished run",
        "never.run/blocks/0.json": "state of an unfinished run",
    }


def test_what_somebody_else_wrote_is_none_of_our_business(tmp_path_location: Location) -> None:
    blobs = open_blobs(tmp_path_location)
    for name in (
        "data/cat/0.png",
        "data/part.bin",
        "weights.safetensors",
        f"{'a' * 64}",  # a digest alone, as other programs name files
        f".{'a' * 64}.bin",
        f"model-{'a' * 64}.bin",
        "marathon.run/results.txt",
        "marathon2.run/recipe.json",
        f"out/manifest.{'a' * 63}.json",
    ):
        blobs.put(name, b"mine")
    assert find(tmp_path_location) == {}


def test_curves_of_a_run_are_kept(tmp_path_location: Location) -> None:
    state = begin_run(tmp_path_location / "out")
    for name in ("metrics.jsonl", "tensorboard/events.1", "trial.run/metrics.jsonl", "train/x"):
        state.put(name, b"")
    assert set(find(tmp_path_location)) == {"out.run/recipe.json", "out.run/train/x"}


def test_commit_inside_a_run_is_kept(tmp_path_location: Location) -> None:
    begin_run(tmp_path_location / "sweep").put("trials/1.json", b"{}")
    trial = tmp_path_location / "sweep.run" / "trial-1"
    publish(trial)
    rival = stage(trial, "part.bin", b"never committed")
    found = find(tmp_path_location)
    assert set(found) == {
        "sweep.run/recipe.json",
        "sweep.run/trials/1.json",
        f"sweep.run/trial-1/{rival.path}",
    }
    assert len(delete_all(tmp_path_location)) == 3
    assert read_part(trial, "part.bin") == b"data"


def test_checkpoints_go_with_the_state_of_their_run(tmp_path_location: Location) -> None:
    begin_run(tmp_path_location / "out")
    checkpoint, torn = (
        tmp_path_location / "out.run" / "train" / f"round-00000{number}-try-1" for number in (1, 2)
    )
    parts = {"state.json": b"{}"}
    (part,) = commit(checkpoint, parts, kind=STATE_KIND, description={}).parts.values()
    open_blobs(torn).put(MANIFEST_NAME, b"{")
    # In the state of no run that is known, it is a commit like any other.
    commit(tmp_path_location / "alone", parts, kind=STATE_KIND, description={})
    gone = {piece.location for piece in delete_all(tmp_path_location)}
    recipe = tmp_path_location / "out.run" / "recipe.json"
    assert gone == {recipe, checkpoint / MANIFEST_NAME, checkpoint / part.path}
    assert read_part(tmp_path_location / "alone", "state.json") == b"{}"
    assert open_blobs(torn).list() == [MANIFEST_NAME]


@pytest.mark.parametrize("newest", ["out/part", "out.run/train/7", "out.run/metrics.jsonl"])
def test_one_new_file_vouches_for_its_whole_run(newest: str, tmp_path: Path) -> None:
    location = parse_location(tmp_path / "kept")
    stage(location / "out", "part.bin", b"staged")
    begin_run(location / "out").put("train/7", b"")
    stage(location / "other", "part.bin", b"staged")
    open_blobs(location).put(newest, b"")
    now = LATER
    os.utime(tmp_path / "kept" / newest, (now - 23 * HOUR, now - 23 * HOUR))
    assert {name.split("/")[0] for name in find(location, now=now)} == {"other"}
    assert any(name.startswith("out") for name in find(location, now=now + 2 * HOUR))


def test_nothing_young_is_left_over(location: Location) -> None:
    stage(location / "out", "part.bin", b"staged")
    begin_run(location / "out")
    assert find(location, now=time.time() + 23 * HOUR) == {}


@pytest.mark.parametrize("version", [b'"version": 2', b'"version": "?'])
def test_beside_a_manifest_that_cannot_be_read_nothing_is_left_over(
    tmp_path_location: Location, version: bytes
) -> None:
    publish(tmp_path_location / "out")
    stage(tmp_path_location / "out", "part.bin", b"of a newer version's manifest, perhaps")
    begin_run(tmp_path_location / "out")
    blobs = open_blobs(tmp_path_location / "out")
    blobs.put(MANIFEST_NAME, blobs.get(MANIFEST_NAME).replace(b'"version": 1', version))
    assert find(tmp_path_location) == {}


def test_write_that_broke_off_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    location = parse_location(tmp_path / "kept")
    publish(location / "out")
    blobs = open_blobs(location / "out")
    with monkeypatch.context() as killed:  # after the bytes, before the name, and with no time left
        killed.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(SystemExit))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            blobs.put("model.bin", b"half")
    assert list(find(location).values()) == ["write that broke off"]
    delete_all(location)
    assert len(list((tmp_path / "kept" / "out").iterdir())) == 2


def test_removal_leaves_commits_whole_and_no_empty_folder(location: Location) -> None:
    publish(location / "done")
    stage(location / "done", "part.bin", b"second")
    begin_run(location / "done").put("metrics.jsonl", b"{}")
    stage(location / "never", "part.bin", b"staged")
    begin_run(location / "never").put("train/checkpoint_1/state.json", b"{}")
    gone = delete_all(location)
    assert len(gone) == 5
    assert sorted(open_blobs(location).list()) == sorted(
        ["done.run/metrics.jsonl", f"done/{MANIFEST_NAME}"]
        + [f"done/{part.path}" for part in read_manifest(location / "done").parts.values()]
    )
    assert read_part(location / "done", "part.bin") == b"data"
    if location.is_local:
        assert {p.name for p in location.path.iterdir()} == {"done", "done.run"}
    assert delete_all(location) == []


def test_notes_go_before_parts_and_the_recipe_last(location: Location) -> None:
    part = stage(location / "out", "block.bin", b"staged")
    state = begin_run(location / "out")
    state.put("blocks/0.json", b"{}")
    state.put("blocks/1.json", b"{}")
    names = [piece.entry.name.removeprefix(f"{location.name}/") for piece in delete_all(location)]
    assert names[2:] == [f"out/{part.path}", "out.run/recipe.json"]
    assert set(names[:2]) == {"out.run/blocks/0.json", "out.run/blocks/1.json"}


def test_run_that_went_on_since_it_was_found_is_left_alone(location: Location) -> None:
    staged = stage(location / "out", "part.bin", b"staged")
    begin_run(location / "out")
    found = leftovers(location, older_than_seconds=24 * HOUR, now=LATER)
    assert len(found) == 2
    assert list(remove(found, older_than_seconds=24 * HOUR)) == []  # by the clock, all of it is new
    commit(location / "out", {"part.bin": staged}, kind="dataset", description={})
    gone = [piece.entry.name for piece in remove(found, older_than_seconds=0)]
    assert gone == [f"{location.name}/out.run/recipe.json"]
    assert read_part(location / "out", "part.bin") == b"staged"


def test_what_went_meanwhile_is_no_error(tmp_path_location: Location) -> None:
    stage(tmp_path_location / "out", "part.bin", b"staged")
    found = leftovers(tmp_path_location, older_than_seconds=0)
    assert delete_all(tmp_path_location) == found
    assert list(remove(found, older_than_seconds=0)) == []
    with pytest.raises(NotCommittedError, match="holds nothing"):
        leftovers(tmp_path_location, older_than_seconds=0)


@given(
    outputs=st.dictionaries(
        st.sampled_from(["a", "b", "a/b", "a.run", "a.run/b", "b.run/c/d", "a.run/b.run"]),
        st.sets(st.sampled_from(["committed", "staged", "begun", "others"])),
    )
)
@settings(max_examples=25)
def test_whatever_is_there_commits_and_others_files_survive(
    outputs: dict[str, set[str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Nobody pulls the plug on a test, and waiting for the disk would be nine tenths of this one.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        check_survivors(outputs, parse_location(tmp_path_factory.mktemp("property")))


def check_survivors(outputs: dict[str, set[str]], location: Location) -> None:
    open_blobs(location).put("something", b"")
    for name, what in outputs.items():
        if "staged" in what:
            stage(location / name, "part.bin", b"staged")
        if "begun" in what:
            begin_run(location / name).put("blocks/0.json", b"{}")
        if "committed" in what:
            publish(location / name, name.encode())
        if "others" in what:
            open_blobs(location).put(f"others/{name}/part.bin", b"mine")
    delete_all(location)
    left = set(open_blobs(location).list())
    expected = {"something"} | {f"others/{n}/part.bin" for n, w in outputs.items() if "others" in w}
    for name, what in outputs.items():
        if "committed" in what:
            assert read_part(location / name, "part.bin") == name.encode()
            (part,) = read_manifest(location / name).parts.values()
            expected |= {f"{name}/{MANIFEST_NAME}", f"{name}/{part.path}"}
    assert expected <= left
    # In one folder with a commit, what looks like a run's is not touched either.
    committed = {name for name, what in outputs.items() if "committed" in what}
    assert {name.rpartition("/")[0] for name in left - expected} <= committed


@pytest.mark.s3
def test_upload_that_broke_off_is_found_and_aborted(s3_location: Location) -> None:
    client = open_blobs(s3_location)._client  # type: ignore[attr-defined]

    def begin_upload(name: str) -> str:
        key = {"Bucket": "tests", "Key": f"{s3_location.key}/{name}"}
        upload = client.create_multipart_upload(**key)["UploadId"]
        client.upload_part(**key, UploadId=upload, PartNumber=1, Body=bytes(1000))
        return str(upload)

    publish(s3_location / "out")
    (part,) = read_manifest(s3_location / "out").parts.values()
    begin_run(s3_location / "out")
    names = (f"out/{part.path}", "out.run/train/big.bin", "others/video.mp4")
    uploads = [begin_upload(name) for name in names]
    found = leftovers(s3_location, older_than_seconds=24 * HOUR, now=LATER)
    assert {(p.what, p.entry.upload_id, p.entry.size_bytes) for p in found} == {
        ("upload that broke off", uploads[0], 1000),
        ("state of a finished run", uploads[1], 1000),
        ("state of a finished run", None, 27),
    }
    assert find(s3_location, now=time.time() + 23 * HOUR) == {}
    assert len(delete_all(s3_location)) == 3
    left = client.list_multipart_uploads(Bucket="tests", Prefix=s3_location.key)["Uploads"]
    assert [upload["UploadId"] for upload in left] == [uploads[2]]  # not ours
    assert read_part(s3_location / "out", "part.bin") == b"data"
    # One that somebody else aborted in the meantime is no error.
    assert list(remove(found, older_than_seconds=0)) == []


@pytest.mark.s3
def test_piece_uploaded_lately_vouches_for_its_run(s3_location: Location) -> None:
    def last_active() -> float:
        found = leftovers(s3_location, older_than_seconds=24 * HOUR, now=LATER)
        (active,) = {piece.last_active for piece in found}  # of both, the part and the upload
        return active

    stage(s3_location / "out", "part.bin", b"staged")
    client = open_blobs(s3_location)._client  # type: ignore[attr-defined]
    key = {"Bucket": "tests", "Key": f"{s3_location.key}/out/model.{'a' * 64}.bin"}
    upload = client.create_multipart_upload(**key)["UploadId"]
    before = last_active()
    time.sleep(1.1)  # S3 counts in seconds
    client.upload_part(**key, UploadId=upload, PartNumber=1, Body=b"more")
    assert last_active() > before


@pytest.mark.s3
def test_right_that_finding_uploads_takes_is_named(
    s3_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.client
    from botocore.exceptions import ClientError

    publish(s3_location)
    send = botocore.client.BaseClient._make_api_call

    def refuse(self: object, operation: str, arguments: dict[str, object]) -> object:
        if operation == "ListMultipartUploads":
            raise ClientError({"Error": {"Code": "AccessDenied"}}, operation)
        return send(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", refuse)
    with pytest.raises(LocationError, match=r"AccessDenied.*s3:ListBucketMultipartUploads"):
        leftovers(s3_location, older_than_seconds=0)
