"""Fine-tuning suppression: the mean gradient of a round's episodes, and one step along it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from protection.parted import whole
from protection.released import ReleasedModel
from protection.savings import ROOMY, MemoryConfig
from protection.sophon.episode import Episode, simulate
from protection.tasks import Loss
from protection.training import NonFiniteError
from protection.workers import ALONE, Workers, mean_over_units, zeros


class Suppression(NamedTuple):
    """What the suppression half of a round did; not numbers where it failed."""

    query_loss: float
    finetuned_accuracy: float
    gradient_norm: float
    """Before clipping."""
    failure: str | None
    """Why nothing was changed: a simulated adversary diverged; None where the step was taken."""


class SuppressionGradient(NamedTuple):
    """Mean over the episodes of all workers, the same on every worker."""

    gradient: list[Tensor]
    """One tensor for each parameter, in its dtype."""
    query_loss: float
    """Mean suppression loss over episodes and steps."""
    finetuned_accuracy: float
    """Mean accuracy on the last query batches."""


def suppression_gradient(
    model: ReleasedModel,
    episodes: Sequence[Episode],
    *,
    suppression_loss: Loss,
    workers: Workers = ALONE,
    memory: MemoryConfig = ROOMY,
) -> SuppressionGradient:
    """Gradient of the mean query loss of ``episodes``, each of which one worker simulates.

    Or one group of workers, over which the model is in parts then.

    Raises:
        NonFiniteError: a query loss or the gradient is NaN or infinite; names episode and step.
            Raised on all workers.
    """
    parameters = list(model.parameters())
    sums = zeros(parameters, dtype=memory.sum_dtype)
    # Column 0: query loss, 1: fine-tuned accuracy, 2: first step whose loss is not finite, counted
    # from 1.
    table = torch.zeros(len(episodes), 3, dtype=torch.float64, device=model.device)
    for index in workers.share(len(episodes)):
        outcome = simulate(
            model,
            episodes[index],
            suppression_loss=suppression_loss,
            gradient=sums,
            memory=memory,
            group=workers.group,
        )
        is_bad = ~outcome.query_losses.isfinite()
        table[index, 0] = outcome.query_losses.mean()
        table[index, 1] = outcome.finetuned_accuracy
        table[index, 2] = torch.where(is_bad.any(), is_bad.double().argmax() + 1, 0)
    mean_over_units(sums, num_units=len(episodes), workers=workers)
    workers.sum_in_place([table])
    bad = [(i, int(step)) for i, step in enumerate(table[:, 2].tolist()) if step > 0]
    if bad:
        index, step = bad[0]
        raise NonFiniteError(
            f"query loss is not finite in episode {index} ({episodes[index].strategy}) at step "
            f"{step}"
        )
    gradient: list[Tensor] = []
    while sums:  # let go one by one: all sums and all gradients would be half as much again
        gradient.append(sums.pop(0).to(parameters[len(gradient)].dtype))
    query_loss, finetuned_accuracy, _ = table.mean(dim=0).tolist()
    return SuppressionGradient(gradient, query_loss, finetuned_accuracy)


def suppress(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    gradient: Sequence[Tensor],
    *,
    clip_norm: float | None,
) -> float:
    """Take one optimizer step along ``gradient`` and return its norm before clipping.

    Args:
        model: its parameters are changed; buffers are not.
        optimizer: the suppression's own, over ``model.parameters()``.
        gradient: one tensor for each parameter.
        clip_norm: greatest global norm of the gradient; None: not clipped.

    Raises:
        NonFiniteError: the gradient is not finite; nothing was changed.
    """
    norm = whole(torch.nn.utils.get_total_norm(list(gradient)))
    if not norm.isfinite():
        raise NonFiniteError(f"norm of the suppression gradient is {norm.item()}")
    parameters = list(model.parameters())
    for parameter, grad in zip(parameters, gradient, strict=True):
        parameter.grad = grad
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip_norm, norm)
    optimizer.step()
    optimizer.zero_grad()
    return norm.item()
