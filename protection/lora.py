"""Low-rank adapters: fine-tuning a small change of every weight matrix, which itself stays.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. A convolution's weight
is taken for the matrix that unfolded patches are multiplied by.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protection.layers import weight_matrices
from protection.parted import parted_like, whole


class LowRankChange(nn.Module):
    """``W + alpha / rank * up @ down``: no change at first, for ``up`` begins at zero."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, rng: torch.Generator) -> None:
        """Draw the factors for ``weight``, ``(out, ...)``."""
        super().__init__()
        self.scale = alpha / rank
        up, self.down = draw_factors(weight, rank=rank, rng=rng)
        self.up = up

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` with the change."""
        return weight + (self.scale * self.up @ self.down).view(weight.shape)


def draw_factors(
    weight: Tensor, *, rank: int, rng: torch.Generator
) -> tuple[nn.Parameter, nn.Parameter]:
    """Factors ``up`` and ``down`` of a change of ``weight``, ``(out, ...)``, that is none yet."""
    rows, columns = weight.shape[0], weight.numel() // weight.shape[0]
    rank = min(rank, rows, columns)  # of a small matrix more would be the same change
    # As torch draws a linear layer's weight.
    down = (2 * torch.rand(rank, columns, generator=rng) - 1) * columns**-0.5
    up = torch.zeros(rows, rank, dtype=weight.dtype, device=weight.device)
    return nn.Parameter(up), nn.Parameter(down.to(up))


class Adapters:
    """Low-rank changes that are kept in the weights themselves, which are trained through them.

    The weights are ``W + alpha / rank * up @ down`` at all times, and gradients come to the factors
    by the chain rule. What is trained is the same as with `add_adapters`, but the network keeps its
    parameters, whole or in parts over a group of workers, and their gradients are at hand.
    """

    def __init__(
        self, weights: Sequence[nn.Parameter], *, rank: int, alpha: float, rng: torch.Generator
    ) -> None:
        """Draw factors for each of ``weights``; nothing changes."""
        self._weights, self._scale = weights, alpha / rank
        self._factors = [draw_factors(weight, rank=rank, rng=rng) for weight in weights]

    @property
    def factors(self) -> list[nn.Parameter]:
        """What there is to train."""
        return [factor for pair in self._factors for factor in pair]

    def gradients(self, of_weights: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the factors, from those of the weights."""
        grads = []
        for (up, down), grad in zip(self._factors, of_weights, strict=True):
            matrix = self._scale * whole(grad).flatten(1)
            grads += [matrix @ down.detach().T, up.detach().T @ matrix]
        return grads

    @contextmanager
    def updated(self) -> Iterator[None]:
        """Change the weights by what the body changes the factors by."""
        before = [(up.detach().clone(), down.detach().clone()) for up, down in self._factors]
        yield
        with torch.no_grad():
            for weight, (up, down), (old_up, old_down) in zip(
                self._weights, self._factors, before, strict=True
            ):
                change = self._scale * (up @ down - old_up @ old_down)
                weight.add_(parted_like(change.view(weight.shape), weight))


def add_adapters(
    network: nn.Module, *, head: nn.Module, rank: int, alpha: float, rng: torch.Generator
) -> list[nn.Parameter]:
    """Put an adapter on every weight matrix but the ``head``'s; return what there is to train."""
    trained: list[nn.Parameter] = []
    for module, name in list(weight_matrices(network)):
        if module is not head:
            change = LowRankChange(getattr(module, name), rank=rank, alpha=alpha, rng=rng)
            parametrize.register_parametrization(module, name, change)
            trained += change.parameters()
    return trained


def merge_adapters(network: nn.Module) -> None:
    """Add every change to its weight for good: the network has its library's layers again."""
    for module in list(network.modules()):
        if parametrize.is_parametrized(module):
            changes = cast(nn.ModuleDict, module.parametrizations)
            for name in list(changes):
                parametrize.remove_parametrizations(module, name)
