"""What a large model is computed with less memory by, and what each saving costs."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from protection.layers import blocks
from protection.precision import computing_again, computing_in
from protection.released import ReleasedModel

COMPUTE_DTYPES: Final = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """What is done for a model that does not fit otherwise; every default saves nothing."""

    batch_parts: int = 1
    """Parts in which support and query batches are computed, one after another or by the workers of
    a group. The result is the same unless the model has BatchNorm, which normalises each part."""
    checkpoint_activations: bool = False
    """Keep only what goes into each block, and compute the block again for its gradient: about a
    third more time, the same result."""
    compute_dtype: str = "float32"
    """float32, or bfloat16 for matrix products and what comes of them; weights, optimizers, losses
    and sums stay float32."""
    host_copies: bool = False
    """Keep what an episode or a bad round is undone with in the host's memory, not the GPU's."""
    float32_sums: bool = False
    """Sum gradients over episodes in float32, not float64: the last digits then depend on the
    number of workers."""

    def __post_init__(self) -> None:
        """Reject what cannot be done."""
        if self.batch_parts < 1:
            raise ValueError(f"batch_parts is {self.batch_parts}; expected at least 1")
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(
                f"compute_dtype is {self.compute_dtype!r}; expected {' or '.join(COMPUTE_DTYPES)}"
            )

    @property
    def sum_dtype(self) -> torch.dtype:
        """Of sums over episodes and shards."""
        return torch.float32 if self.float32_sums else torch.float64


ROOMY: Final = MemoryConfig()


def economize(model: ReleasedModel, memory: MemoryConfig) -> None:
    """Make ``model`` compute with what ``memory`` saves in activations; its weights stay.

    Raises:
        ValueError: activations are to be checkpointed, and the network has no blocks.
    """
    if memory.checkpoint_activations:
        found = blocks(model)
        if not found:
            raise ValueError(
                "checkpoint_activations is true, but "
                f"{type(model.network).__name__} has no list of blocks to compute again; expected "
                "false (or batch_parts: 2 or more)"
            )
        for block in found:
            block.forward = functools.partial(_computed_again, block.forward)
    dtype = COMPUTE_DTYPES[memory.compute_dtype]
    if dtype != torch.float32:
        model.network.forward = functools.partial(_computed_in, dtype, model.network.forward)


def _computed_again(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    # A DenseNet's layers are given one list, which grows before they are computed again.
    as_they_are = (list(value) if isinstance(value, list) else value for value in inputs)
    return checkpoint(
        forward, *as_they_are, use_reentrant=False, context_fn=computing_again, **options
    )


def _computed_in(
    dtype: torch.dtype, forward: Callable[..., Any], *inputs: Tensor, **options: Any
) -> Any:
    with computing_in(dtype, inputs[0].device.type):
        outputs = forward(*inputs, **options)
    return outputs.to(inputs[0].dtype) if isinstance(outputs, Tensor) else outputs
