"""The passes of one network, each traced once however often an estimate asks for it."""

import copy

import torch
from torch import nn

from protection.live_bytes import Pass, trace_evaluation, trace_training
from protection.models import Classifier
from protection.savings import MemoryConfig, economize


class Passes:
    """What passes of a network need at any batch size and with any saving."""

    def __init__(self, model: Classifier, *, image_size: int) -> None:
        """Hold the structure of ``model``, which is on any device, meta among them.

        Nothing of it is changed, and there is no memory for its weights.
        """
        self.model, self.image_size = _skeleton(model), image_size
        self._economized: dict[tuple[bool, str], Classifier] = {}
        self._traced: dict[tuple[object, ...], Pass] = {}

    def training(self, batch_size: int, trains: frozenset[str], memory: MemoryConfig) -> Pass:
        """Forward and backward, with the gradients of the parameters named in ``trains``."""
        saving = (memory.checkpoint_activations, memory.compute_dtype)
        key = (batch_size, trains, *saving)
        if key not in self._traced:
            self._traced[key] = trace_training(
                self._with(memory),
                batch_size=batch_size,
                image_size=self.image_size,
                trains=trains.__contains__,
            )
        return self._traced[key]

    def evaluation(self, batch_size: int, memory: MemoryConfig) -> Pass:
        """Forward without gradients, in eval mode."""
        key = (batch_size, memory.compute_dtype)
        if key not in self._traced:
            self._traced[key] = trace_evaluation(
                self._with(memory), batch_size=batch_size, image_size=self.image_size
            )
        return self._traced[key]

    def _with(self, memory: MemoryConfig) -> Classifier:
        key = (memory.checkpoint_activations, memory.compute_dtype)
        if key not in self._economized:
            self._economized[key] = copy.deepcopy(self.model)
            economize(self._economized[key], memory)
        return self._economized[key]


def _skeleton(model: Classifier) -> Classifier:
    memo: dict[int, object] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta")) for p in model.parameters()
    }
    memo |= {id(b): torch.empty_like(b, device="meta") for b in model.buffers()}
    return copy.deepcopy(model, memo)
