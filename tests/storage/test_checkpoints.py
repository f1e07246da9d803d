import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from storage.blobs import open_blobs
from storage.checkpoints import (
    read_weights,
    tensors_from_bytes,
    tensors_to_bytes,
)
from storage.commit import commit
from storage.errors import BlobMissingError, CheckpointError, NotCommittedError
from storage.location import Location
from tests.storage.tensor_values import TENSORS, assert_same


@given(tensors=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), TENSORS))
def test_tensors_come_back_bit_for_bit(tensors: dict[str, Tensor]) -> None:
    loaded = tensors_from_bytes(tensors_to_bytes(tensors, {"kind": "test"}), source="memory")
    assert_same(dict(sorted(loaded.items())), dict(sorted(tensors.items())))


def test_tied_and_strided_tensors_are_stored_as_they_look() -> None:
    base = torch.arange(12.0).view(3, 4)
    tensors = {"base": base, "tied": base, "transposed": base.t(), "view": base[1:, ::2]}
    loaded = tensors_from_bytes(tensors_to_bytes(tensors), source="memory")
    for name, tensor in tensors.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=0, atol=0)
    loaded["base"].zero_()
    assert loaded["tied"].sum() == base.sum()


def test_parameters_and_conjugates_are_stored_as_values() -> None:
    parameter = nn.Parameter(torch.ones(2))
    conjugate = torch.tensor([1 + 2j], dtype=torch.complex64).conj()
    data = tensors_to_bytes({"parameter": parameter, "conjugate": conjugate})
    loaded = tensors_from_bytes(data, source="memory")
    assert not loaded["parameter"].requires_grad
    assert loaded["conjugate"].item() == 1 - 2j


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0], "tensor 'w' is a list; expected a torch.Tensor"),
        (torch.empty(2, device="meta"), "tensor 'w' is on meta"),
        (torch.eye(2).to_sparse(), "layout torch.sparse_coo"),
        (torch.ones(1, dtype=torch.complex128), "dtype torch.complex128"),
    ],
)
def test_tensor_that_cannot_be_stored_is_refused(value: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tensors_to_bytes({"w": value})


def test_damaged_file_is_refused_by_name() -> None:
    data = tensors_to_bytes({"w": torch.ones(8)})
    for damaged in (b"", b"not safetensors", data[:-1]):
        with pytest.raises(CheckpointError, match=f"/runs/x has {len(damaged)} bytes"):
            tensors_from_bytes(damaged, source="/runs/x")


def test_weights_are_read_from_a_commit_and_from_a_file(location: Location) -> None:
    weights = {"w": torch.arange(3)}
    data = tensors_to_bytes(weights)
    commit(location / "r18.1", {"model.safetensors": data}, kind="model", description={})
    open_blobs(location).put("plain.safetensors", data)
    for source in ("r18.1", "plain.safetensors"):
        assert_same(read_weights(str(location / source)), weights)


def test_committed_weights_open_with_safetensors_alone(tmp_path: Path) -> None:
    data = tensors_to_bytes({"w": torch.arange(3)})
    manifest = commit(tmp_path, {"model.safetensors": data}, kind="model", description={})
    file = tmp_path / manifest.parts["model.safetensors"].path
    assert_same(safetensors.torch.load_file(file), {"w": torch.arange(3)})


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "pytorch_model.bin", "last.CKPT"])
def test_pickle_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({}))
    message = rf"{name} is a pickle.*convert with safetensors\.torch\.save_file"
    with pytest.raises(CheckpointError, match=message):
        read_weights(str(tmp_path / name))


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(BlobMissingError, match=r"nothing\.safetensors does not exist"):
        read_weights(tmp_path / "nothing.safetensors")
    with pytest.raises(NotCommittedError, match="nothing has no MANIFEST"):
        read_weights(tmp_path / "nothing")
    commit(tmp_path / "data", {"a.parquet": b""}, kind="dataset", description={})
    with pytest.raises(NotCommittedError, match="is a dataset without a part 'model"):
        read_weights(tmp_path / "data")
