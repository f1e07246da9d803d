"""Leaving a model as it was found: what simulated fine-tuning changes, this puts back exactly."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from protection.parted import own


@contextmanager
def preserved(model: nn.Module, *, in_host_memory: bool = False) -> Iterator[None]:
    """Give back modules, parameters, buffers, gradients and modes of ``model`` as they were.

    Also when the body raises. Values are copied back into the same tensors, so optimizers that hold
    them stay valid. BatchNorm's statistics and its counter are buffers and come back with the rest.
    Costs one copy of the model's state, which may be kept ``in_host_memory``.
    """
    parameters = list(model.parameters())
    tensors: list[Tensor] = [own(t.detach()) for t in (*parameters, *model.buffers())]
    values = [t.to("cpu", copy=True) if in_host_memory else t.clone() for t in tensors]
    grads = [parameter.grad for parameter in parameters]
    requires_grad = [parameter.requires_grad for parameter in parameters]
    modes = [(module, module.training) for module in model.modules()]
    children = [(module, *child) for module in model.modules() for child in module.named_children()]
    for parameter in parameters:  # a body that accumulates must not add into the caller's gradients
        parameter.grad = None
    try:
        yield
    finally:
        for parent, name, child in children:
            setattr(parent, name, child)  # a body may have put another in its place
        with torch.no_grad():
            for tensor, value in zip(tensors, values, strict=True):
                tensor.copy_(value)
        for parameter, grad, required in zip(parameters, grads, requires_grad, strict=True):
            parameter.grad = grad
            parameter.requires_grad_(required)
        for module, mode in modes:
            module.training = mode


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode, gradients or not; every module's own mode comes back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; every module's own mode comes back afterwards."""
    # Not in inference mode: what FSDP puts together in it, it could not differentiate by later.
    with in_eval_mode(model), torch.no_grad():
        yield
