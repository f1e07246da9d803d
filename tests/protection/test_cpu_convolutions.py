"""Convolutions as matrix products: what `torch` computes, summed in another order."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from protection import cpu_convolutions
from protection.cpu_convolutions import convolve

Convolve = Callable[..., Tensor]


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Conv2d, Tensor]:
    def pair(least: int, most: int) -> tuple[int, int]:
        numbers = st.integers(least, most)
        return draw(numbers), draw(numbers)

    channels, kernel, padding = draw(st.integers(1, 5)), pair(1, 4), pair(0, 3)
    stride = draw(st.sampled_from([kernel, pair(1, 3)]))  # tiles, or anything
    height, width = (
        draw(st.integers(max(1, k - 2 * p), 7)) for k, p in zip(kernel, padding, strict=True)
    )
    torch.manual_seed(draw(st.integers(0, 1000)))
    module = nn.Conv2d(
        channels,
        draw(st.integers(1, 40)),
        kernel,
        stride=stride,
        padding=padding,
        bias=draw(st.booleans()),
    )
    if draw(st.booleans()):
        module = module.to(memory_format=torch.channels_last)
    images = torch.randn(draw(st.integers(1, 9)), channels, height, width)
    return module, channels_last(images) if draw(st.booleans()) else images


def channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


def gradients(with_: Convolve, module: nn.Conv2d, images: Tensor) -> list[Tensor]:
    images = images.clone().requires_grad_()
    output = with_(
        *(images, module.weight, module.bias),
        *(module.stride, module.padding, module.dilation, module.groups),
    )
    weights = torch.arange(output.numel(), dtype=torch.float64).sin().view(output.shape)
    wanted = [images, *module.parameters()]
    return [output.detach(), *torch.autograd.grad((output.double() * weights).sum(), wanted)]


@given(convolutions(), st.integers(1, 30))
def test_output_and_gradients_are_those_of_torch(case: tuple[nn.Conv2d, Tensor], rows: int) -> None:
    module, images = case
    expected = gradients(F.conv2d, copy.deepcopy(module).double(), images.double())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu_convolutions, "_CHANNELS_PER_PIXEL", 0)
        patch.setattr(cpu_convolutions, "_ROWS", rows)
        for found, exact in zip(gradients(convolve, module, images), expected, strict=True):
            torch.testing.assert_close(found, exact.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (nn.Conv2d(32, 64, 3, padding=1), 4),  # a small map
        (nn.Conv2d(32, 64, 1), 4),
        (nn.Conv2d(32, 64, 1, stride=2), 4),
        (nn.Conv2d(32, 64, 2, stride=2), 4),
        (nn.Conv2d(32, 64, 3, stride=2, padding=1), 2),  # a map of one pixel
    ],
)
def test_bfloat16_is_as_good_as_that_of_torch(module: nn.Conv2d, size: int) -> None:
    torch.manual_seed(0)
    images = channels_last(torch.randn(20, 32, size, size))
    exact = gradients(F.conv2d, copy.deepcopy(module).double(), images.double())

    def errors(with_: Convolve) -> list[float]:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(with_, module, images)
        assert [tensor.dtype for tensor in found] == [torch.bfloat16] + 3 * [torch.float32]
        return [
            float((ours - right).norm() / right.norm())
            for ours, right in zip(found, exact, strict=True)
        ]

    for ours, ordinary in zip(errors(convolve), errors(F.conv2d), strict=True):
        assert ours < 1.1 * ordinary


@pytest.mark.parametrize(
    ("module", "size", "by"),
    [
        (nn.Conv2d(2, 64, 3, padding=1), 4, "_weight_gradient"),
        (nn.Conv2d(2, 64, 3, padding=1), 5, None),  # 25 pixels want 100 channels
        (nn.Conv2d(2, 64, 3, stride=2, padding=1), 8, "_weight_gradient"),
        (nn.Conv2d(2, 3, 1), 9, "_of_patches"),
        (nn.Conv2d(2, 3, 4, stride=4), 8, "_of_patches"),
        (nn.Conv2d(2, 3, 4, stride=4), 9, None),  # a row and a column are left
        (nn.Conv2d(2, 3, 1, stride=2), 8, None),
        (nn.Conv2d(2, 3, 3, padding=1), 1, "_of_patches"),
        (nn.Conv2d(2, 64, 3, padding="same"), 4, None),
        (nn.Conv2d(2, 64, 3, padding=2, dilation=2), 4, None),
        (nn.Conv2d(2, 64, 3, padding=1, groups=2), 4, None),
    ],
)
def test_it_is_done_where_it_pays(
    module: nn.Conv2d, size: int, by: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = set()

    def spied(name: str) -> Callable[..., Any]:
        function = getattr(cpu_convolutions, name)
        return lambda *given: calls.add(name) or function(*given)

    for name in ("_weight_gradient", "_of_patches"):
        monkeypatch.setattr(cpu_convolutions, name, spied(name))
    gradients(convolve, module, channels_last(torch.randn(3, 2, size, size)))
    assert calls == ({by} if by else set())
    calls.clear()
    gradients(convolve, module, torch.randn(3, 2, size, size).contiguous())
    assert calls == set() or size == 1  # one pixel is in either layout


def test_frozen_weights_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_convolutions, "_weight_gradient", None)
    module = nn.Conv2d(2, 64, 3, padding=1).requires_grad_(False)
    images = channels_last(torch.randn(3, 2, 4, 4)).requires_grad_()
    convolve(images, module.weight, module.bias, padding=1).sum().backward()
    assert images.grad is not None


def test_a_kernel_that_is_too_large_is_refused_as_by_torch() -> None:
    images, weight = channels_last(torch.randn(3, 2, 2, 2)), torch.randn(4, 2, 4, 4)
    with pytest.raises(RuntimeError, match="Kernel size can't be greater than actual input size"):
        convolve(images, weight, stride=4)


@pytest.mark.parametrize("module", [nn.Conv2d(4, 8, 1), nn.Conv2d(4, 8, 2, stride=2)])
def test_gradients_keep_the_layout(module: nn.Conv2d) -> None:
    images = channels_last(torch.randn(3, 4, 6, 6))
    _, of_images, *_ = gradients(convolve, module, images)
    assert of_images.is_contiguous(memory_format=torch.channels_last)
