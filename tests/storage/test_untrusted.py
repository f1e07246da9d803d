"""A bucket that others write to: nothing read from it runs code or leads out of its place."""

import hashlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from storage.blobs import open_blobs
from storage.checkpoints import WEIGHTS_NAME, read_weights
from storage.commit import commit, fetch_part, read_manifest, read_part
from storage.errors import CheckpointError, ManifestError, NotCommittedError, StorageError
from storage.location import Location
from storage.manifest import MANIFEST_NAME
from storage.training_state import read_training_state

ESCAPES = [
    "../x",
    "..",
    "a/../../x",
    "/etc/passwd",
    "a\\b",
    "..\\x",
    "C:\\x",
    "~/x",
    "x\0",
    ".x",
    "",
]


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.write_text, (self.trace, "executed")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "trace"


def plant(location: Location, change: Callable[[dict[str, dict[str, object]]], object]) -> None:
    """Commit one part, then change the manifest's parts as somebody else might."""
    commit(location, {"part.bin": b"content"}, kind="model", description={})
    blobs = open_blobs(location)
    document = json.loads(blobs.get(MANIFEST_NAME))
    change(document["parts"])
    blobs.put(MANIFEST_NAME, json.dumps(document).encode())


@pytest.mark.parametrize("escape", ESCAPES)
@pytest.mark.parametrize("place", ["name", "path"])
def test_name_that_leads_out_is_refused_by_every_reader(
    escape: str, place: str, tmp_path_location: Location, tmp_path: Path
) -> None:
    def change(parts: dict[str, dict[str, object]]) -> None:
        if place == "name":
            parts[escape] = parts["part.bin"]
        else:
            parts["part.bin"]["path"] = escape

    plant(tmp_path_location, change)
    before = sorted(tmp_path.rglob("*"))
    readers: list[Callable[[], object]] = [
        lambda: read_manifest(tmp_path_location),
        lambda: read_part(tmp_path_location, "part.bin"),
        lambda: fetch_part(tmp_path_location, "part.bin", tmp_path / "out"),
        lambda: fetch_part(tmp_path_location, escape, tmp_path / "out"),
        lambda: read_weights(str(tmp_path_location)),
    ]
    for read in readers:
        with pytest.raises(ManifestError, match=r"MANIFEST\.json.* plain file name"):
            read()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.s3
def test_name_that_leads_out_is_refused_on_s3_too(s3_location: Location, tmp_path: Path) -> None:
    plant(s3_location, lambda parts: parts["part.bin"].update(path="../other/part.bin"))
    with pytest.raises(ManifestError, match=r"path '\.\./other/part\.bin'"):
        fetch_part(s3_location, "part.bin", tmp_path / "out")


def test_name_that_the_caller_makes_up_is_not_looked_for(
    tmp_path_location: Location, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(b"x")
    commit(tmp_path_location, {"part.bin": b"content"}, kind="model", description={})
    for name in ("../secret", str(tmp_path / "secret")):
        with pytest.raises(NotCommittedError, match="is a model without a part"):
            fetch_part(tmp_path_location, name, tmp_path / "out")


def test_pickle_in_place_of_anything_is_refused_and_not_run(
    tmp_path_location: Location, trace: Path
) -> None:
    data = pickle.dumps(Planted(trace))
    pickle.loads(data)
    assert trace.read_text() == "executed"  # it does work
    trace.unlink()
    # With the right digest: whoever can write the blob can write the manifest.
    commit(tmp_path_location, {WEIGHTS_NAME: data, "model.pt": data}, kind="model", description={})
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_weights(str(tmp_path_location))
    blobs = open_blobs(tmp_path_location)
    for name in ("model.pt", "model.pth", "model.bin", "model.ckpt", "model.pkl"):
        blobs.put(name, data)
        with pytest.raises(CheckpointError, match=r"is a pickle by its suffix"):
            read_weights(str(tmp_path_location / name))
    blobs.put("model.safetensors", data)
    blobs.put(MANIFEST_NAME, data)
    planted = tmp_path_location / "planted"
    parts = {"state.safetensors": data, "state.json": data}
    commit(planted, parts, kind="training-state", description={})
    readers: list[Callable[[], object]] = [
        lambda: read_weights(str(tmp_path_location / "model.safetensors")),
        lambda: read_weights(str(tmp_path_location)),
        lambda: read_manifest(tmp_path_location),
        lambda: read_training_state(planted),
    ]
    for read in readers:
        with pytest.raises(StorageError, match=r"expected"):
            read()
    assert not trace.exists()


def test_torch_archive_as_weights_is_refused_and_not_run(
    tmp_path_location: Location, trace: Path, tmp_path: Path
) -> None:
    torch.save({"weight": Planted(trace)}, tmp_path / "archive")
    parts = {WEIGHTS_NAME: tmp_path / "archive"}
    commit(tmp_path_location, parts, kind="model", description={})
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        read_weights(str(tmp_path_location))
    assert not trace.exists()


def test_weights_whose_header_lies_are_refused(tmp_path_location: Location) -> None:
    data = safetensors.torch.save({"w": torch.zeros(4)})
    for lie in (
        data.replace(b"[0,16]", b"[0,99]"),
        data.replace(b"[4]", b"[9]"),
        b"\xff" * 8 + data[8:],
    ):
        assert lie != data
        digest = hashlib.sha256(lie).hexdigest()
        place = tmp_path_location / digest
        commit(place, {WEIGHTS_NAME: lie}, kind="model", description={})
        with pytest.raises(CheckpointError, match="not a complete safetensors file"):
            read_weights(str(place))
