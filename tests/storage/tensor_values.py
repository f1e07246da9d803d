"""Any tensors and any training state, and equality to the bit."""

import torch
from hypothesis import strategies as st
from torch import Tensor

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


TENSORS = st.builds(
    tensor_of, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99)
)
TEXT = st.text(max_size=5)
STATES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | TENSORS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            TEXT | st.integers() | st.sampled_from(["__tensor__", "__items__", "__float__"]),
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
