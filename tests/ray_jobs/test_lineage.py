"""What was made from what: recorded by jobs, followed by `show`, and said where it breaks."""

import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from ray_jobs.cli import main
from ray_jobs.lineage import Ancestor, ancestors, parent
from storage.blobs import open_blobs
from storage.checkpoints import weights_digest
from storage.commit import commit, read_manifest
from storage.location import Location
from storage.manifest import MANIFEST_NAME, Manifest

TRAIN, TEST, IMAGES = "a" * 64, "b" * 64, "c" * 64


def publish(
    location: Location,
    kind: str,
    *,
    parents: Mapping[str, object],
    recipe: Mapping[str, object] | None = None,
) -> Manifest:
    description = {
        "ringfence_version": "0.1.0",
        "recipe": recipe or {},
        "metrics": {"test_accuracy": 0.93},
        "parents": parents,
    }
    return commit(location, {"report.md": b"it held"}, kind=kind, description=description)


@pytest.fixture
def audit(location: Location) -> Location:
    """A report on a protected dataset, and what it was made from, as the jobs leave them."""
    images, trajectory = str(location / "images"), str(location / "trajectory")
    protected = str(location / "protected")
    commit(images, {"data.parquet": b""}, kind="dataset", description={})
    publish(
        location / "trajectory",
        "model",
        parents={**parent("weights", None), "original": {"train": TRAIN, "test": TEST}},
        recipe={"original": {"train": "digits:train", "test": "digits:test"}},
    )
    publish(
        location / "protected",
        "dataset",
        parents={**parent("trajectory", trajectory), "dataset": IMAGES},
        recipe={"dataset": {"source": images}},
    )
    publish(
        location / "audit",
        "data-audit",
        parents={**parent("protected", protected), "clean": IMAGES, "test": TEST},
        recipe={"clean": None, "test": {"source": "digits:test"}},
    )
    return location / "audit"


def test_chain_is_followed_to_its_beginning(audit: Location) -> None:
    clean, protected, test = sorted(ancestors(read_manifest(audit)), key=lambda one: one.role)
    assert (clean.source, clean.sha256, clean.problem) == (None, IMAGES, None)
    assert (test.source, test.sha256, test.parents) == ("digits:test", TEST, [])
    place = audit.parent
    assert protected.source == str(place / "protected")
    assert protected.commit_id == read_manifest(place / "protected").commit_id
    assert protected.kind == "dataset"
    images, trajectory = sorted(protected.parents, key=lambda one: one.role)
    # The images are themselves a commit: they are data with a digest, and a location to follow.
    assert (images.role, images.sha256, images.kind) == ("dataset", IMAGES, "dataset")
    assert images.source == str(place / "images")
    assert trajectory.kind == "model"
    assert [(one.role, one.source, one.sha256) for one in trajectory.parents] == [
        ("original.test", "digits:test", TEST),
        ("original.train", "digits:train", TRAIN),
    ]


def test_show_prints_the_chain_as_a_tree(
    audit: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(audit)]) == 0
    shown = capsys.readouterr().out
    manifest = read_manifest(audit)
    for line in (
        f"location   {audit}",
        "kind       data-audit",
        f"commit     {manifest.commit_id}",
        "ringfence  0.1.0",
        "  test_accuracy: 0.93",
        "    source: digits:test",
        f"  report.md  7 B  sha256 {manifest.parts['report.md'].sha256}",
    ):
        assert f"\n{line}\n" in f"\n{shown}"
    tree = [line.split(":")[0] for line in shown[shown.index("made from") :].splitlines()[1:]]
    assert tree == [
        "  ├── clean",
        "  ├── protected",
        "  │   ├── dataset",
        "  │   └── trajectory",
        "  │       ├── original.test",
        "  │       └── original.train",
        "  └── test",
    ]
    assert f"not recorded where  (sha256 {IMAGES})" in shown
    assert "NOT REACHED" not in shown


def test_show_for_programs_is_one_object(
    audit: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(audit), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    manifest = read_manifest(audit)
    assert shown["location"] == str(audit)
    assert shown["commit_id"] == manifest.commit_id
    assert shown["description"] == manifest.description
    assert shown["parts"]["report.md"]["size_bytes"] == 7
    (protected,) = [one for one in shown["ancestors"] if one["role"] == "protected"]
    assert protected["problem"] is None
    assert {one["role"] for one in protected["parents"]} == {"dataset", "trajectory"}


def test_broken_chain_is_said_and_no_failure(
    audit: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    place = audit.parent
    recorded = read_manifest(place / "trajectory").commit_id
    open_blobs(place / "trajectory").delete(MANIFEST_NAME)
    assert main(["show", str(audit)]) == 0
    shown = capsys.readouterr().out
    assert f"commit {recorded}, NOT REACHED: {place / 'trajectory'} has no MANIFEST.json" in shown
    found = publish(place / "trajectory", "model", parents={"weights": str(place / "other")})
    assert main(["show", str(audit)]) == 0
    shown = capsys.readouterr().out
    assert f"NOT REACHED: has commit {found.commit_id} now, and was {recorded} when it was" in shown
    assert "other" not in shown  # what is there now was made from something else


def only(location: Location, parents: Mapping[str, object]) -> Ancestor:
    (found,) = ancestors(publish(location / "child", "model", parents=parents))
    return found


def test_manifest_of_an_older_version_has_no_commit_id(location: Location) -> None:
    manifest = publish(location / "model", "model", parents={})
    found = only(location, {"model": str(location / "model")})
    assert (found.kind, found.commit_id, found.problem) == ("model", manifest.commit_id, None)


def test_weights_file_is_a_parent_with_a_digest_in_place_of_a_commit(location: Location) -> None:
    source, blobs = str(location / "weights.safetensors"), open_blobs(location)
    assert parent("model", source) == {"model": source}
    blobs.put("weights.safetensors", b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    recorded = parent("model", source)
    assert recorded == {"model": source, "model_sha256": digest}
    found = only(location, recorded)
    assert (found.source, found.sha256, found.problem) == (source, digest, None)
    blobs.delete("weights.safetensors")
    (found,) = ancestors(read_manifest(location / "child"))
    assert "not there any more" in str(found.problem)


def test_digest_of_an_index_is_that_of_what_sha256sum_says(tmp_path: Path) -> None:
    files = {
        "m-2.safetensors": b"two",
        "m-1.safetensors": b"one",
        "m.safetensors.index.json": b'{"weight_map": {"a": "m-1.safetensors", '
        b'"b": "m-2.safetensors", "c": "m-1.safetensors"}}',
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    names = ["m-1.safetensors", "m-2.safetensors", "m.safetensors.index.json"]
    said = subprocess.run(
        f"sha256sum {' '.join(names)} | sha256sum",
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert weights_digest(str(tmp_path / names[-1])) == said.split()[0]


def test_parent_that_is_gone_is_recorded_all_the_same(tmp_path: Path) -> None:
    assert parent("model", str(tmp_path)) == {"model": str(tmp_path)}
    assert parent("weights", None) == {"weights": None}


def test_ring_of_manifests_written_by_hand_ends(tmp_path_location: Location) -> None:
    manifest = publish(
        tmp_path_location / "a", "model", parents={"model": str(tmp_path_location / "a")}
    )
    (found,) = ancestors(manifest)
    assert (found.commit_id, found.parents) == (manifest.commit_id, [])


@pytest.mark.parametrize("parents", [None, "text", [1, 2], {"model": 3, "x": {"y": [None]}}])
def test_parents_of_another_shape_are_passed_over(
    tmp_path_location: Location, parents: object
) -> None:
    manifest = commit(
        tmp_path_location, {}, kind="model", description={"parents": parents, "recipe": 7}
    )
    assert [one.source for one in ancestors(manifest)] in ([], ["text"])


def test_show_of_what_is_not_committed(
    location: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(location)]) == 2
    assert f"ringfence show: {location} has no MANIFEST.json" in capsys.readouterr().err
    publish(location, "model", parents={})
    newer = open_blobs(location).get(MANIFEST_NAME).replace(b'"version": 1', b'"version": 2')
    open_blobs(location).put(MANIFEST_NAME, newer)
    assert main(["show", str(location)]) == 2
    assert "has version 2, newer than this program can read" in capsys.readouterr().err
