"""Convolutions on small maps: the gradients of `torch`, by another way to sum them."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from protection import small_maps
from protection.small_maps import use_matrix_products


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    def pair(least: int, most: int) -> tuple[int, int]:
        numbers = st.integers(least, most)
        return draw(numbers), draw(numbers)

    channels, kernel, padding = draw(st.integers(1, 5)), pair(1, 4), pair(0, 3)
    height, width = (
        draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True)
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    module = nn.Conv2d(
        channels,
        draw(st.integers(1, 40)),
        kernel,
        stride=pair(1, 3),
        padding=padding,
        bias=draw(st.booleans()),
    )
    images = torch.randn(draw(st.integers(1, 9)), channels, height, width)
    if draw(st.booleans()):
        images = images.contiguous(memory_format=torch.channels_last)
    return module, images


def gradients(module: nn.Conv2d, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    output = module(images)
    weights = torch.arange(output.numel(), dtype=torch.float64).sin().view(output.shape)
    wanted = [images, *module.parameters()]
    return [output, *torch.autograd.grad((output.double() * weights).sum(), wanted)]


@given(convolutions(), st.integers(1, 30))
def test_gradients_are_those_of_torch(case: tuple[nn.Conv2d, Tensor], rows: int) -> None:
    module, images = case
    expected = gradients(copy.deepcopy(module).double(), images.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_maps, "_CHANNELS_PER_PIXEL", 0)
        patch.setattr(small_maps, "_ROWS", rows)
        use_matrix_products(module)
        for found, exact in zip(gradients(module, images), expected, strict=True):
            torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-5)


def test_bfloat16_has_a_gradient_as_good_as_that_of_torch() -> None:
    torch.manual_seed(0)
    module, images = nn.Conv2d(32, 64, 3, padding=1), torch.randn(20, 32, 4, 4)
    exact = gradients(copy.deepcopy(module).double(), images.double())[2]

    def error(module: nn.Conv2d) -> float:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(module, images)[2]
        assert found.dtype == torch.float32
        return float((found - exact).norm() / exact.norm())

    ordinary = error(module)
    use_matrix_products(module)
    assert error(module) < 1.1 * ordinary


@pytest.mark.parametrize(
    ("module", "size", "is_used"),
    [
        (nn.Conv2d(2, 64, 3, padding=1), 4, True),
        (nn.Conv2d(2, 64, 3, padding=1), 5, False),  # 25 pixels want 100 channels
        (nn.Conv2d(2, 64, 3, stride=2, padding=1), 8, True),
        (nn.Conv2d(2, 64, 3, padding="same"), 4, False),
        (nn.Conv2d(2, 64, 3, padding=1, padding_mode="circular"), 4, False),
        (nn.Conv2d(2, 64, 3, padding=2, dilation=2), 4, False),
        (nn.Conv2d(2, 64, 3, padding=1, groups=2), 4, False),
    ],
)
def test_it_is_done_where_it_pays(
    module: nn.Conv2d, size: int, is_used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    whole = small_maps._weight_gradient
    monkeypatch.setattr(
        small_maps, "_weight_gradient", lambda *given: calls.append(given) or whole(*given)
    )
    use_matrix_products(module)
    gradients(module, torch.randn(3, 2, size, size))
    assert bool(calls) == is_used


def test_frozen_weights_cost_nothing_and_copies_have_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(small_maps, "_weight_gradient", None)
    module = nn.Conv2d(2, 64, 3, padding=1).requires_grad_(False)
    use_matrix_products(module)
    images = torch.randn(3, 2, 4, 4, requires_grad=True)
    module(images).sum().backward()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other.weight.zero_()
        other.bias.zero_()
        assert not other(images).any()
        assert module(images).any()
