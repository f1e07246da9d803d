"""Attention: what `torch` computes, and its gradients."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from protection import cpu_attention
from protection.cpu_attention import attend


def inputs(batch: int, heads: int, queries: int, keys: int, width: int) -> list[Tensor]:
    return [torch.randn(batch, heads, tokens, width) for tokens in (queries, keys, keys)]


def gradients(with_: Any, tensors: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    output = with_(*leaves, **options)
    weights = torch.arange(output.numel(), dtype=torch.float64).sin().view(output.shape)
    return [output.detach(), *torch.autograd.grad((output.double() * weights).sum(), leaves)]


@given(
    st.tuples(*(st.integers(1, 6) for _ in range(5))),
    st.sampled_from([None, 0.3]),
    st.integers(1, 300),
)
def test_output_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], scale: float | None, scores: int
) -> None:
    tensors = inputs(*shape)
    expected = gradients(F.scaled_dot_product_attention, [t.double() for t in tensors], scale=scale)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_attention, "_SCORES", scores)
        found = gradients(attend, tensors, scale=scale)
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact.float(), rtol=1e-4, atol=1e-5)


def test_bfloat16_is_as_good_as_that_of_torch() -> None:
    torch.manual_seed(0)
    tensors = inputs(6, 3, 50, 50, 16)
    exact = gradients(F.scaled_dot_product_attention, [t.double() for t in tensors])

    def errors(with_: Any) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(with_, tensors)
        assert [tensor.dtype for tensor in found] == [torch.bfloat16] + 3 * [torch.float32]
        return [
            float((ours - right).norm() / right.norm())
            for ours, right in zip(found, exact, strict=True)
        ]

    for ours, ordinary in zip(errors(attend), errors(F.scaled_dot_product_attention), strict=True):
        assert ours < 1.1 * ordinary


def test_only_what_goes_in_is_kept() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(2, 3, 50, 50, 4)]
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        attend(*tensors)
    assert {tuple(tensor.shape) for tensor in kept} == {(2, 3, 50, 4)}


@pytest.mark.parametrize(
    "options",
    [
        {"attn_mask": torch.ones(5, 5).tril().bool()},
        {"is_causal": True},
        {"enable_gqa": True},
    ],
)
def test_other_attention_is_left_to_torch(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_attention, "_Attention", None)
    tensors = inputs(2, 3, 5, 5, 4)
    expected = gradients(F.scaled_dot_product_attention, tensors, **options)
    found = gradients(attend, tensors, **options)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_nothing_is_kept_where_there_is_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_attention, "_Attention", None)
    attend(*inputs(2, 3, 5, 5, 4))
    with torch.no_grad():
        attend(*(tensor.requires_grad_() for tensor in inputs(2, 3, 5, 5, 4)))
