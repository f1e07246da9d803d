"""Weights in several files: whole or not at all, and Hugging Face's own."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import load_torch_model, split_torch_state_dict_into_shards
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from storage.checkpoints import read_weights, stage_weights
from storage.commit import commit
from storage.errors import BlobMissingError, CheckpointError, NotCommittedError
from storage.location import Location
from storage.weight_shards import INDEX_NAME, index_to_bytes, split_weights
from tests.storage.tensor_values import TENSORS, assert_same

WEIGHTS = {name: torch.arange(8.0) + index for index, name in enumerate("abcde")}
SHARD_BYTES = 70  # two tensors of 32 bytes


def publish(location: Location, weights: dict[str, Tensor] = WEIGHTS) -> Location:
    parts = stage_weights(location, weights, shard_bytes=SHARD_BYTES)
    commit(location, parts, kind="model", description={})
    return location


@given(
    tensors=st.dictionaries(st.text("abc.", min_size=1), TENSORS, max_size=8),
    shard_bytes=st.integers(1, 200),
)
def test_every_tensor_is_in_one_file_and_files_are_as_large_as_asked(
    tensors: dict[str, Tensor], shard_bytes: int
) -> None:
    files = split_weights(tensors, shard_bytes=shard_bytes)
    assert sorted(name for names in files.values() for name in names) == sorted(tensors)
    for names in files.values():
        size = sum(tensors[name].nbytes for name in names)
        assert size <= shard_bytes or sum(tensors[n].nbytes > 0 for n in names) == 1


def test_weights_come_back_from_shards_wherever_they_are(location: Location) -> None:
    weights = read_weights(publish(location / "model"))
    assert_same(dict(sorted(weights.items())), WEIGHTS)


def test_weights_that_fit_are_one_file(tmp_path: Path) -> None:
    parts = stage_weights(tmp_path, WEIGHTS)
    assert list(parts) == ["model.safetensors"]


def test_tied_weights_are_stored_as_they_look(tmp_path_location: Location) -> None:
    tied = {**WEIGHTS, "z": WEIGHTS["a"]}
    assert_same(dict(sorted(read_weights(publish(tmp_path_location, tied)).items())), tied)


def test_files_of_a_commit_are_read_by_its_index_alone(tmp_path: Path) -> None:
    publish(tmp_path)
    (index,) = tmp_path.glob("model.safetensors.index.*.json")
    weight_map = json.loads(index.read_text())["weight_map"]
    assert len(set(weight_map.values())) == 3
    loaded: dict[str, Tensor] = {}
    for file in set(weight_map.values()):
        loaded |= load_file(tmp_path / file)
    assert_same(dict(sorted(loaded.items())), WEIGHTS)


def test_a_folder_that_hugging_face_wrote_is_read_and_ours_is_read_by_it(tmp_path: Path) -> None:
    layer = nn.Linear(8, 4)
    split = split_torch_state_dict_into_shards(layer.state_dict(), max_shard_size=100)
    for file, names in split.filename_to_tensors.items():
        save_file({name: layer.state_dict()[name] for name in names}, tmp_path / file)
    index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
    (tmp_path / INDEX_NAME).write_text(json.dumps(index))
    assert_same(read_weights(tmp_path / INDEX_NAME), dict(layer.state_dict()))
    files = split_weights(layer.state_dict(), shard_bytes=100)
    (tmp_path / INDEX_NAME).write_bytes(index_to_bytes(files, layer.state_dict()))
    other = nn.Linear(8, 4)
    load_torch_model(other, tmp_path, strict=True)
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "model.safetensors.index.json is no index of safetensors files"),
        (b"[]", "expected a JSON object with a weight_map"),
        (b'{"weight_map": ["a"]}', "is no index"),
        (b'{"weight_map": {"a": 3}}', "weight_map has 3"),
        (b'{"weight_map": {"a": "model.bin"}}', r"weight_map has 'model\.bin'"),
        (b'{"weight_map": {"a": "../model.safetensors"}}', "plain file name"),
        (b'{"weight_map": {"b": "one.safetensors"}}', "one.safetensors do not agree on .* 'a'"),
    ],
)
def test_damaged_index_is_refused(tmp_path: Path, index: bytes, message: str) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "one.safetensors")
    (tmp_path / INDEX_NAME).write_bytes(index)
    with pytest.raises(CheckpointError, match=message):
        read_weights(tmp_path / INDEX_NAME)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    index = b'{"weight_map": {"a": "gone.safetensors"}}'
    (tmp_path / INDEX_NAME).write_bytes(index)
    with pytest.raises(BlobMissingError, match=r"gone\.safetensors does not exist"):
        read_weights(tmp_path / INDEX_NAME)
    commit(tmp_path / "m", {INDEX_NAME: index}, kind="model", description={})
    with pytest.raises(NotCommittedError, match=r"is a model without a part 'gone\.safetensors'"):
        read_weights(tmp_path / "m")


def test_no_bytes_to_a_file_is_refused() -> None:
    with pytest.raises(ValueError, match="shard_bytes is 0; expected at least 1"):
        split_weights(WEIGHTS, shard_bytes=0)
