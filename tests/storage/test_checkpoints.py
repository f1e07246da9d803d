import io
import json
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from storage.blobs import open_blobs
from storage.checkpoints import (
    load_training_state,
    read_weights,
    save_training_state,
    tensors_from_bytes,
    tensors_to_bytes,
)
from storage.commit import commit
from storage.errors import BlobMissingError, CheckpointError, NotCommittedError
from storage.location import Location

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.uint16,
]


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def tensor_of(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    """Any bit pattern at all, NaN among them; booleans have two."""
    num_bytes = dtype.itemsize
    for size in shape:
        num_bytes *= size
    generator = torch.Generator().manual_seed(seed)
    high = 2 if dtype == torch.bool else 256
    raw = torch.randint(high, (num_bytes,), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).view(shape)


_TENSORS = st.builds(
    tensor_of, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99)
)
_TEXT = st.text(max_size=5)
_STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXT | _TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            _TEXT | st.integers() | st.sampled_from(["__tensor__", "__items__", "__float__"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


def assert_same(actual: object, expected: object) -> None:
    assert type(actual) is type(expected)
    if isinstance(expected, Tensor):
        assert isinstance(actual, Tensor)
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        assert bits(actual) == bits(expected)
    elif isinstance(expected, dict):
        assert isinstance(actual, dict)
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list):
        assert isinstance(actual, list)
        assert len(actual) == len(expected)
        for ours, theirs in zip(actual, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert repr(actual) == repr(expected)  # NaN differs from itself, and 0.0 equals -0.0


@given(tensors=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), _TENSORS))
def test_tensors_come_back_bit_for_bit(tensors: dict[str, Tensor]) -> None:
    loaded = tensors_from_bytes(tensors_to_bytes(tensors, {"kind": "test"}), source="memory")
    assert_same(dict(sorted(loaded.items())), dict(sorted(tensors.items())))


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(_TEXT, _STATES, max_size=4))
def test_training_state_comes_back_bit_for_bit(
    state: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One folder for all examples, so that each also replaces the state of the one before.
    folder = tmp_path_factory.getbasetemp() / "any-state"
    save_training_state(folder, state)
    assert_same(load_training_state(folder), state)


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
    save_training_state(tmp_path, state)
    step(model, optimizer)

    other, other_optimizer = make()
    loaded = load_training_state(tmp_path)
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
        save_training_state(tmp_path, state)
    assert list(tmp_path.iterdir()) == []


def test_state_that_contains_itself_is_refused(tmp_path: Path) -> None:
    state: dict[str, object] = {}
    state["state"] = state
    with pytest.raises(ValueError, match="nested more than 100 deep"):
        save_training_state(tmp_path, state)


def test_tuples_come_back_as_lists(tmp_path: Path) -> None:
    save_training_state(tmp_path, {"betas": (0.9, 0.999)})
    assert load_training_state(tmp_path) == {"betas": [0.9, 0.999]}


def test_state_without_its_last_file_is_not_there(tmp_path: Path) -> None:
    save_training_state(tmp_path, {"w": torch.ones(1)})
    (tmp_path / "state.json").unlink()
    with pytest.raises(NotCommittedError, match="holds no complete training state"):
        load_training_state(tmp_path)


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
def test_damaged_state_is_refused(tmp_path: Path, document: bytes, message: str) -> None:
    save_training_state(tmp_path, {})
    (tmp_path / "state.json").write_bytes(document)
    with pytest.raises(CheckpointError, match=rf"state\.json is .*{message}"):
        load_training_state(tmp_path)


def test_nothing_stored_is_a_pickle(tmp_path: Path) -> None:
    save_training_state(tmp_path, {"w": torch.ones(1), 0: "x"})  # type: ignore[dict-item]
    json.loads((tmp_path / "state.json").read_bytes())
    for file in tmp_path.iterdir():
        with pytest.raises((pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError)):
            pickle.load(io.BytesIO(file.read_bytes()))
