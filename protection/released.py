"""A model as it is released: a library's own network, and what every job needs around it."""

from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from protection.batches import Batch
from protection.tasks import Examples, Task, training_loss


class ReleasedModel(nn.Module):
    """Keeps the network as its library built it, so that its weights load without Ringfence."""

    network: nn.Module
    task: ClassVar[Task]
    """What models of this class are trained to do."""

    def examples(self, batch: Batch, *key: int | str) -> Examples:
        """Return what the model is to answer for ``batch``; ``key`` names all that is drawn."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


def batch_loss(
    model: ReleasedModel, batch: Batch, *key: int | str, label_smoothing: float = 0.0
) -> Tensor:
    """Mean training loss of ``batch``; ``key`` names what its examples are drawn by.

    Raises:
        ValueError: labels are to be smoothed, and the model's task has none.
    """
    inputs, targets = model.examples(batch, *key)
    loss = training_loss(model.task, label_smoothing=label_smoothing)
    return loss(cast(Tensor, model(*inputs)), targets)
