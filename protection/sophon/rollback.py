"""What a bad round is undone with: a copy of the weights and of what optimizers remember."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from protection.parted import own


class RoundStart:
    """The state of ``model`` and ``optimizers`` as it is now, to go back to."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        in_host_memory: bool = False,
    ) -> None:
        """Copy it; what is in parts over a group of workers is copied by each of them in part."""

        def copied(tensor: Tensor) -> Tensor:
            mine = own(tensor.detach())
            return mine.to("cpu", copy=True) if in_host_memory else mine.clone()

        self._model, self._optimizers = model, optimizers
        self._weights = [copied(t) for t in (*model.parameters(), *model.buffers())]
        self._remembered = [
            {
                parameter: {name: copied(value) for name, value in values.items()}
                for parameter, values in optimizer.state.items()
            }
            for optimizer in optimizers
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Go back; the tensors stay the same ones."""
        tensors = (*self._model.parameters(), *self._model.buffers())
        for tensor, value in zip(tensors, self._weights, strict=True):
            own(tensor).copy_(value)
        for optimizer, remembered in zip(self._optimizers, self._remembered, strict=True):
            for parameter in list(optimizer.state):
                if parameter not in remembered:  # the optimizer's first step was in the round
                    del optimizer.state[parameter]
                    continue
                for name, value in remembered[parameter].items():
                    own(optimizer.state[parameter][name]).copy_(value)
