"""What a network computes in, and by which kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from protection import cpu_attention, cpu_convolutions
from protection.models import Classifier
from protection.precision import computing_in
from protection.savings import MemoryConfig, economize
from protection.sep.gradients import input_gradient
from protection.sep.trajectory import Member, freeze
from tests.tiny_networks import images, tiny_network


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the kernels of our own that were called."""
    names: set[str] = set()

    def spied(module: Any, name: str) -> Callable[..., Any]:
        function = getattr(module, name)
        return lambda *given: names.add(name) or function(*given)

    monkeypatch.setattr(cpu_convolutions, "_of_patches", spied(cpu_convolutions, "_of_patches"))
    monkeypatch.setattr(cpu_attention._Attention, "apply", spied(cpu_attention._Attention, "apply"))
    return names


def gradient_of(model: Classifier) -> list[torch.Tensor]:
    batch = images(10)
    pixels = (batch.images.float() / 255).contiguous(memory_format=torch.channels_last)
    loss = model(pixels).square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize(
    ("name", "kernels"), [("resnet", {"_of_patches"}), ("vit", {"_of_patches", "apply"})]
)
def test_bfloat16_on_a_cpu_has_kernels_of_its_own(
    name: str, kernels: set[str], used: set[str]
) -> None:
    model = tiny_network(name).eval().to(memory_format=torch.channels_last)
    with computing_in(torch.float32, "cpu"):
        exact = gradient_of(model)
    assert used == set()
    with torch.autocast("cpu", torch.bfloat16):
        ordinary = gradient_of(model)
    assert used == set()
    with computing_in(torch.bfloat16, "cpu"):
        ours = gradient_of(model)
    assert used == kernels

    def error(grads: list[torch.Tensor]) -> float:
        pairs = list(zip(grads, exact, strict=True))
        away = sum(float((found - right).square().sum()) for found, right in pairs)
        return (away / sum(float(right.square().sum()) for _, right in pairs)) ** 0.5

    assert 0 < error(ours) < 1.3 * error(ordinary)


def test_they_are_used_when_activations_are_computed_again(used: set[str]) -> None:
    plain, saving = (tiny_network("vit").eval() for _ in range(2))
    economize(plain, MemoryConfig(compute_dtype="bfloat16"))
    economize(saving, MemoryConfig(compute_dtype="bfloat16", checkpoint_activations=True))
    expected = gradient_of(plain)
    used.clear()
    found = gradient_of(saving)
    assert used == {"_of_patches", "apply"}
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_ensembles_use_them_too(used: set[str]) -> None:
    member = Member(freeze(tiny_network("vit")), None)
    pixels = (images(4).images.float() / 255).contiguous(memory_format=torch.channels_last)
    targets = torch.zeros(4, dtype=torch.int64)
    input_gradient(member, pixels, targets)
    assert used == set()
    input_gradient(member, pixels, targets, precision=torch.bfloat16)
    assert used == {"_of_patches", "apply"}
