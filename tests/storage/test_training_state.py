import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from storage.checkpoints import tensors_to_bytes
from storage.commit import commit, read_manifest
from storage.errors import (
    AlreadyCommittedError,
    CheckpointError,
    DigestMismatchError,
    NotCommittedError,
)
from storage.location import Location
from storage.training_state import commit_training_state, read_training_state
from tests.storage.tensor_values import STATES, TEXT, assert_same


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(TEXT, STATES, max_size=4))
def test_training_state_comes_back_bit_for_bit(
    state: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any-state")
    commit_training_state(folder, state)
    assert_same(read_training_state(folder), state)


def test_optimizer_resumes_from_stored_state_as_if_never_stopped(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, torch.optim.Optimizer]:
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model = nn.Linear(4, 2)
        return model, torch.optim.Adam(model.parameters(), lr=0.1)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()

    model, optimizer = make()
    step(model, optimizer)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "round_index": 1}
    commit_training_state(tmp_path, state)
    step(model, optimizer)

    other, other_optimizer = make()
    loaded = read_training_state(tmp_path)
    assert loaded["round_index"] == 1
    other.load_state_dict(loaded["model"])  # type: ignore[arg-type]
    other_optimizer.load_state_dict(loaded["optimizer"])  # type: ignore[arg-type]
    step(other, other_optimizer)
    assert_same(dict(other.state_dict()), dict(model.state_dict()))


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, {2}]}}, r"state\['a'\]\['b'\]\[1\] is a set"),
        ({"a": {1.5: 0}}, r"state\['a'\] has the key 1\.5, a float"),
        ({"a": b"x"}, r"state\['a'\] is a bytes, which cannot be stored without pickle"),
    ],
)
def test_state_of_another_type_is_refused_with_its_place(
    tmp_path: Path, state: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        commit_training_state(tmp_path, state)
    assert list(tmp_path.iterdir()) == []


def test_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    state: dict[str, object] = {}
    state["state"] = state
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        commit_training_state(tmp_path, state)


def test_tuples_come_back_as_lists(tmp_path: Path) -> None:
    commit_training_state(tmp_path, {"betas": (0.9, 0.999)})
    assert read_training_state(tmp_path) == {"betas": [0.9, 0.999]}


def part_of(location: Path, name: str) -> Path:
    return location / read_manifest(location).parts[name].path


def test_nothing_is_there_before_the_manifest(tmp_path: Path) -> None:
    with pytest.raises(NotCommittedError, match=r"has no MANIFEST\.json"):
        read_training_state(tmp_path)
    commit(tmp_path, {"a.parquet": b""}, kind="dataset", description={})
    with pytest.raises(CheckpointError, match="is a committed dataset; expected a training-state"):
        read_training_state(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"\1"])
def test_damaged_state_is_refused(tmp_path: Path, damage: bytes) -> None:
    commit_training_state(tmp_path, {"w": torch.zeros(3)})
    path = part_of(tmp_path, "state.safetensors")
    path.write_bytes(path.read_bytes()[: -len(damage) or 5] + damage)
    with pytest.raises(DigestMismatchError, match=r"state\..*\.safetensors has .* changed"):
        read_training_state(tmp_path)


def test_committed_state_stays_as_it_is(location: Location) -> None:
    commit_training_state(location, {"w": torch.zeros(3)})
    with pytest.raises(AlreadyCommittedError, match="is never rewritten"):
        commit_training_state(location, {"w": torch.ones(3)})
    assert_same(read_training_state(location), {"w": torch.zeros(3)})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "damaged"),
        (b"[]", "damaged"),
        (b'{"format": "x", "version": 1, "state": {}}', "'x', version 1; expected"),
        (b'{"format": "ringfence training state", "version": 2, "state": {}}', "version 2;"),
        (
            b'{"format": "ringfence training state", "version": 1,'
            b' "state": {"a": {"__tensor__": "7"}}}',
            "damaged",
        ),
    ],
)
def test_state_of_another_form_is_refused(tmp_path: Path, document: bytes, message: str) -> None:
    parts = {"state.safetensors": tensors_to_bytes({}), "state.json": document}
    commit(tmp_path, parts, kind="training-state", description={})
    with pytest.raises(CheckpointError, match=rf"state\.json is .*{message}"):
        read_training_state(tmp_path)


def test_nothing_stored_is_a_pickle(tmp_path: Path) -> None:
    commit_training_state(tmp_path, {"w": torch.ones(1), 0: "x"})  # type: ignore[dict-item]
    json.loads(part_of(tmp_path, "state.json").read_bytes())
    for file in tmp_path.iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError)):
            pickle.load(io.BytesIO(file.read_bytes()))
