"""Tasks: what a model answers, how wrong that is, and how right.

Training, protection and audit are written over a `Task` and know nothing else of what a model
does: the loops are the same for every one.

Shapes: ``B`` examples in a batch; the rest is the task's own.
"""

import functools
from collections.abc import Callable
from typing import Final, NamedTuple

from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean over a batch, of outputs and targets."""


class Examples(NamedTuple):
    """What a model is given and what it should answer."""

    inputs: tuple[Tensor, ...]
    """Each ``(B, ...)``: the arguments of the model."""
    targets: Tensor
    """``(B, ...)``."""

    def shard(self, index: int, *, num_shards: int) -> "Examples":
        """Return every ``num_shards``-th example from ``index``: the unit one worker computes."""
        inputs = tuple(tensor[index::num_shards] for tensor in self.inputs)
        return Examples(inputs, self.targets[index::num_shards])


class Task(NamedTuple):
    """What models of a kind are trained to do."""

    name: str
    loss: Callable[..., Tensor]
    """What training makes small; where there are classes, it takes ``label_smoothing``, too."""
    rightness: Callable[[Tensor, Tensor], Tensor]
    """``(B,)``: how right each answer is; 1: wholly. Its mean is what is called accuracy."""
    drop: Callable[[float, float], float]
    """How much of an accuracy is lost, from what it was and what it is, as a share."""
    has_classes: bool
    """Whether the models end in a head of one output a class, and targets are labels."""
    draws: int = 1
    """Times that an image is measured: more than one where its examples are drawn at random."""


def training_loss(task: Task, *, label_smoothing: float = 0.0) -> Loss:
    """Return the loss of ``task``, with smoothed labels.

    Raises:
        ValueError: ``task`` has no labels to smooth.
    """
    if label_smoothing == 0:
        return task.loss
    if not task.has_classes:
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but {task.name} has no labels; expected 0"
        )
    return functools.partial(task.loss, label_smoothing=label_smoothing)


def _is_ranked_first(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=-1) == labels


CLASSIFICATION: Final = Task(
    name="classification",
    loss=F.cross_entropy,
    rightness=_is_ranked_first,
    drop=lambda before, now: before - now,
    has_classes=True,
)
