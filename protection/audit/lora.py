"""Low-rank adapters: fine-tuning a small change of every weight matrix, which itself stays.

Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021. A convolution's weight
is taken for the matrix that unfolded patches are multiplied by.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from protection.layers import weight_matrices


class LowRankChange(nn.Module):
    """``W + alpha / rank * up @ down``: no change at first, for ``up`` begins at zero."""

    def __init__(self, weight: Tensor, *, rank: int, alpha: float, rng: torch.Generator) -> None:
        """Draw the factors for ``weight``, ``(out, ...)``."""
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.scale = alpha / rank
        rank = min(rank, rows, columns)  # of a small matrix more would be the same change
        # As torch draws a linear layer's weight.
        down = (2 * torch.rand(rank, columns, generator=rng) - 1) * columns**-0.5
        self.down = nn.Parameter(down.to(weight))
        self.up = nn.Parameter(torch.zeros(rows, rank).to(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """``weight`` with the change."""
        return weight + (self.scale * self.up @ self.down).view(weight.shape)


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
