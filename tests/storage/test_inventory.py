import json
import os
from pathlib import Path

import pytest

from storage.blobs import BlobStore, open_blobs
from storage.commit import commit, stage
from storage.errors import LocationError, ManifestError, NotCommittedError
from storage.inventory import read_commands, read_manifests, take_inventory
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME, Manifest


def begin_run(location: Location, *, command: str = "protect-data") -> BlobStore:
    """State of a run with that output, as `ray_jobs.runs` writes it."""
    blobs = open_blobs(location.sibling(".run"))
    blobs.put("recipe.json", json.dumps({"command": command}).encode())
    return blobs


def publish(location: Location, content: bytes = b"data") -> Manifest:
    return commit(location, {"part.bin": content}, kind="dataset", description={})


def test_commits_and_runs_are_found_at_any_depth(location: Location) -> None:
    published = {name: publish(location / name) for name in ("a", "deep/er/b", "deep")}
    begin_run(location / "a")
    begin_run(location / "c").put("blocks/0.json", b"{}")
    stage(location / "c", "part.bin", b"staged")
    open_blobs(location).put("notes/readme.txt", b"somebody's own")
    inventory = take_inventory(location)
    root = location.name
    assert inventory.base == location.parent
    assert read_manifests(inventory) == {f"{root}/{n}": m for n, m in published.items()}
    assert read_commands(inventory) == {f"{root}/{n}": "protect-data" for n in ("a", "c")}
    by_folder = {output.folder.removeprefix(f"{root}/"): output for output in inventory.outputs}
    assert list(by_folder) == ["a", "c", "deep", "deep/er/b", "notes"]
    assert [len(by_folder[name].files) for name in by_folder] == [2, 1, 2, 2, 1]
    assert [len(by_folder[name].state) for name in by_folder] == [1, 2, 0, 0, 0]
    assert {e.name: e.size_bytes for e in by_folder["c"].state}[f"{root}/c.run/blocks/0.json"] == 2
    assert inventory.location(by_folder["c"].folder) == location / "c"


def test_location_itself_is_found_with_its_run(location: Location) -> None:
    manifest = publish(location)
    begin_run(location)
    for asked in (location, location.sibling(".run")):  # whichever of the two is named
        inventory = take_inventory(asked)
        (output,) = inventory.outputs
        assert read_manifests(inventory) == {location.name: manifest}
        assert output.is_committed
        assert len(output.state) == 1
        assert output.last_active == max(e.modified for e in (*output.files, *output.state))


def test_neighbour_with_the_same_beginning_is_not_below(location: Location) -> None:
    publish(location / "run")
    publish(location / "run2")
    publish(location / "run.run2")
    (output,) = take_inventory(location / "run").outputs
    assert output.folder == "run"


def test_folder_that_only_looks_like_a_run_is_none(tmp_path_location: Location) -> None:
    publish(tmp_path_location / "best.run")  # an output may be named so
    blobs = open_blobs(tmp_path_location)
    blobs.put("marathon.run/notes.txt", b"")
    blobs.put("marathon2.run/recipe.json", b'["flour"]')
    blobs.put("marathon3.run/recipe.json", b"flour")
    blobs.put(".run/recipe.json", b"{}")
    inventory = take_inventory(tmp_path_location)
    assert read_commands(inventory) == {}
    assert list(read_manifests(inventory)) == [f"{tmp_path_location.name}/best.run"]


def test_commit_inside_a_run_belongs_to_both(tmp_path_location: Location) -> None:
    begin_run(tmp_path_location / "sweep")
    publish(tmp_path_location / "sweep.run" / "trial-1")
    begin_run(tmp_path_location / "sweep.run" / "trial-1")
    inventory = take_inventory(tmp_path_location)
    sweep, trial = inventory.outputs
    assert (len(sweep.files), len(sweep.state)) == (0, 4)
    assert (len(trial.files), len(trial.state)) == (2, 0)
    assert list(read_manifests(inventory)) == [trial.folder]


def test_unreadable_manifest_is_an_answer_and_no_failure(tmp_path_location: Location) -> None:
    publish(tmp_path_location / "good")
    text = open_blobs(tmp_path_location / "good").get(MANIFEST_NAME)
    newer = text.replace(b'"version": 1', b'"version": 2')
    open_blobs(tmp_path_location).put(f"newer/{MANIFEST_NAME}", newer)
    open_blobs(tmp_path_location).put(f"torn/{MANIFEST_NAME}", newer[:50])
    found = read_manifests(take_inventory(tmp_path_location))
    good, newer_error, torn_error = found.values()
    assert isinstance(good, Manifest)
    assert isinstance(newer_error, ManifestError)
    assert "version 2, newer than this program" in str(newer_error)
    assert "is not JSON" in str(torn_error)


def test_place_without_a_file_is_refused(location: Location) -> None:
    with pytest.raises(NotCommittedError, match=r"holds nothing.*check the address") as caught:
        take_inventory(location)
    assert str(location) in str(caught.value)


def test_file_and_forbidden_folder_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(LocationError, match=r"file cannot be accessed \(Not a directory\)"):
        take_inventory(tmp_path / "file")
    (tmp_path / "closed").mkdir()

    def scandir(_: object) -> None:  # root, who may run the tests, may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(LocationError, match=r"closed cannot be accessed \(Permission denied\)"):
        take_inventory(tmp_path / "closed")


def test_links_are_not_followed(tmp_path: Path) -> None:
    publish(parse_location(tmp_path / "outside"))
    publish(parse_location(tmp_path / "kept" / "a"))
    (tmp_path / "kept" / "latest").symlink_to(tmp_path / "kept" / "a")
    (tmp_path / "kept" / "elsewhere").symlink_to(tmp_path / "outside")
    assert [o.folder for o in take_inventory(tmp_path / "kept").outputs] == ["kept/a"]


@pytest.mark.s3
def test_bucket_is_listed_once_whatever_is_in_it(
    s3_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    import botocore.client

    for number in range(12):
        publish(s3_location / f"{number}", bytes([number]))
    # Keys that no location has: of other programs, and the folder marks of some browsers.
    blobs = open_blobs(s3_location)
    client = blobs._client  # type: ignore[attr-defined]
    for key in ("folder/", "a//b", "what?", "../x"):
        client.put_object(Bucket="tests", Key=f"{s3_location.key}/{key}", Body=b"")
    asked = []
    send = botocore.client.BaseClient._make_api_call

    def count(self: object, operation: str, arguments: dict[str, object]) -> object:
        asked.append(operation)
        return send(self, operation, arguments)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", count)
    inventory = take_inventory(s3_location)
    assert len(inventory.outputs) == 12
    assert set(asked) == {"ListObjectsV2"}
    assert len(asked) == 2  # below the location, and below its run
    assert len(read_manifests(inventory)) == 12
    assert asked.count("GetObject") == 12


@pytest.mark.s3
def test_whole_bucket_may_be_listed(s3_location: Location) -> None:
    name = s3_location.key
    publish(s3_location / "x")
    inventory = take_inventory(str(s3_location).replace(f"/{name}", "/"))
    assert inventory.base.key == ""
    assert f"{name}/x" in read_manifests(inventory)
