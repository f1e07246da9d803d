"""What a worker needs of memory for a protection, counted before it starts, phase by phase.

Weights, copies, sums and what optimizers remember follow from the number of parameters; what a pass
needs beside them comes of `protection.live_bytes`, at the batch sizes of the recipe.
"""

from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple

import torch
from torch import nn

from protection.evaluation import BLOCK_SIZE
from protection.layers import blocks
from protection.live_bytes import Pass
from protection.models import Classifier
from protection.sophon.adversary import METHODS, Strategy
from protection.sophon.config import SophonConfig
from protection.sophon.fine_tuning import trained_parameters
from protection.sophon.passes import Passes

# Numbers of its size that an optimizer remembers of each parameter.
REMEMBERED: Final = {
    "sgd": 0,
    "momentum": 1,
    "nesterov": 1,
    "adam": 2,
    "adamw": 2,
    "adagrad": 1,
    "adadelta": 2,
    "rmsprop": 1,
}
GIB: Final = 2**30


class MemoryEstimate(NamedTuple):
    """Bytes that one worker holds at once."""

    phases: Mapping[str, Mapping[str, float]]
    """What is held in each phase of a round, by what it is for."""

    @property
    def worst(self) -> str:
        """Phase with the peak."""
        return max(self.phases, key=lambda phase: sum(self.phases[phase].values()))

    @property
    def peak_bytes(self) -> float:
        """Of the worst phase."""
        return sum(self.phases[self.worst].values())

    def __str__(self) -> str:
        """One line: the peak, when it is, and what makes it."""
        items = sorted(self.phases[self.worst].items(), key=lambda item: -item[1])
        shown = ", ".join(f"{name} {size / GIB:.2f}" for name, size in items if size)
        return f"{self.peak_bytes / GIB:.2f} GiB during {self.worst} ({shown})"


def estimate_memory(
    passes: Passes, config: SophonConfig, *, group_size: int, on_gpu: bool
) -> MemoryEstimate:
    """Peak memory of `protect` on one worker.

    Args:
        passes: of the model.
        config: of the run.
        group_size: workers over which the model is to be in parts.
        on_gpu: whether host memory is another one than the worker's.
    """
    memory = config.memory
    sizes = _Sizes(passes.model, config, group_size, on_gpu)
    image_bytes = 3 * passes.image_size**2 * torch.float32.itemsize
    phases = {}
    for strategy in _distinct(config):
        episode = {**sizes.state(), **sizes.episode(strategy)}
        episode["images"] = (strategy.batch_size + config.query_size) * image_bytes
        wanted = sizes.trained_names(strategy.method)
        found = [("support", strategy.batch_size, wanted)]
        if config.query_size > strategy.batch_size or wanted != sizes.names:
            found.append(("query", config.query_size, sizes.names))  # or it needs less
        for name, batch_size, trains in found:
            part = -(-batch_size // memory.batch_parts)
            phases[f"the {name} pass of {strategy}"] = {
                **episode,
                **sizes.of_pass(passes.training(part, trains, memory), trains),
                "gradients of other parts": sizes.of(trains) * (memory.batch_parts > 1),
            }
    shard = -(-config.reinforcement_batch_size // config.reinforcement_shards)
    phases["reinforcement"] = {
        **sizes.state(),
        "sums of gradients": sizes.sums,
        "images": config.reinforcement_batch_size * image_bytes,
        **sizes.of_pass(passes.training(shard, sizes.names, memory), sizes.names),
    }
    phases["a step of the optimizers"] = {
        **sizes.state(),
        "gradients": max(sizes.sums, (2 if on_gpu else 1) * sizes.parameters),
    }
    block = min(BLOCK_SIZE, config.validation_images)
    phases["validation"] = {
        **sizes.state(),
        "images": block * image_bytes,
        **sizes.of_pass(passes.evaluation(block, memory), frozenset()),
    }
    return MemoryEstimate(phases)


class _Sizes:
    """Bytes of what does not depend on a batch."""

    def __init__(
        self, model: Classifier, config: SophonConfig, group_size: int, on_gpu: bool
    ) -> None:
        self._model, self._config, self._share = model, config, 1 / group_size
        self._copies_elsewhere = config.memory.host_copies and on_gpu
        self._bytes = {name: float(p.nbytes) for name, p in model.named_parameters()}
        self.names = frozenset(self._bytes)
        self.parameters = self.of(self.names)
        self._buffers = float(sum(buffer.nbytes for buffer in model.buffers()))
        num_parameters = sum(p.numel() for p in model.parameters())
        self.sums = num_parameters * config.memory.sum_dtype.itemsize * self._share

    def of(self, names: frozenset[str]) -> float:
        """Of the parameters that are named."""
        return sum(self._bytes[name] for name in names) * self._share

    def state(self) -> dict[str, float]:
        """What is held from the first round to the last."""
        undoes = self._config.max_original_drop < 1 and not self._copies_elsewhere
        return {
            "weights": self.parameters + self._buffers,
            "the two optimizers": 4 * self.parameters,
            "copy to undo a round": (5 * self.parameters + self._buffers) * undoes,
        }

    def episode(self, strategy: Strategy) -> dict[str, float]:
        """What an episode adds."""
        trained = self.trained_names(strategy.method)
        remembered = REMEMBERED[strategy.optimizer]
        if METHODS[strategy.method].trains == "adapters":
            remembered = 0  # of factors, which are small
        return {
            "copy to undo an episode": (self.parameters + self._buffers)
            * (not self._copies_elsewhere),
            "sums of gradients": self.sums,
            "the adversary's optimizer": remembered * self.of(trained),
        }

    def trained_names(self, method: str) -> frozenset[str]:
        """Parameters whose gradients a step of ``method`` takes."""
        if self._share < 1:
            return self.names  # in parts, all gradients are taken
        wanted = {id(p) for p in trained_parameters(self._model, METHODS[method])}
        return frozenset(n for n, p in self._model.named_parameters() if id(p) in wanted)

    def of_pass(self, traced: Pass, trains: frozenset[str]) -> dict[str, float]:
        """What a pass adds, its gradients included."""
        found = {"activations and gradients": traced.peak_bytes(gradient_share=self._share)}
        if self._share < 1:
            found["blocks in one piece"] = self._gathered(has_gradients=bool(trains))
        return found

    def _gathered(self, *, has_gradients: bool) -> float:
        """Parameters that are together at once: those of no block, a block, and the next one."""
        in_blocks = [_bytes_of(block) for block in blocks(self._model)]
        rest = _bytes_of(self._model) - sum(in_blocks)
        together = rest + 2 * max(in_blocks, default=0)
        # Gradients of one block are summed over the group while those of the next are computed.
        return together * (2 if has_gradients else 1)


def _bytes_of(module: nn.Module) -> float:
    return float(sum(parameter.nbytes for parameter in module.parameters()))


def _distinct(config: SophonConfig) -> Iterator[Strategy]:
    """Strategies that differ in what they need."""
    seen = set()
    for family in config.adversary:
        for strategy in family.strategies():
            key = (strategy.method, REMEMBERED[strategy.optimizer], strategy.batch_size)
            if key not in seen:
                seen.add(key)
                yield strategy
