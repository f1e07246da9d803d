"""Tensors of which each worker of a group keeps a part, and the same in one piece.

Parts are torch's DTensors. Every function takes a tensor that is in one piece anyway, too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def is_parted(tensor: Tensor) -> bool:
    """Whether this worker has a part of ``tensor`` only."""
    return isinstance(tensor, DTensor)


def own(tensor: Tensor) -> Tensor:
    """This worker's part of ``tensor``, in the same memory; all of it where it is in one piece."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """``tensor`` in one piece; all workers of the group must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted_like(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor``, the same in one piece on every worker, in the parts of ``other``."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(
        tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
    )


def whole_state(state: object) -> Any:
    """``state``, nested at will, with tensors in one piece; those that were in parts on the host.

    All workers of the group must call it.
    """
    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: whole_state(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [whole_state(value) for value in state]
    return state


def load_network(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load ``state``, in one piece, into a network that may be in parts."""
    own_state = network.state_dict()
    network.load_state_dict({name: parted_like(t, own_state[name]) for name, t in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load ``state``, in one piece, into an optimizer whose parameters may be in parts."""
    parameters: Sequence[Tensor] = [p for g in optimizer.param_groups for p in g["params"]]

    def parted(value: object, parameter: Tensor) -> object:
        is_like = isinstance(value, Tensor) and value.shape == parameter.shape
        return parted_like(cast(Tensor, value), parameter) if is_like else value

    of_each = {
        index: {name: parted(value, parameters[int(index)]) for name, value in values.items()}
        for index, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": of_each})
