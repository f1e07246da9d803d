"""The gradient of a batch's mean loss, computed at once, in parts, or by a group of workers."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor

from protection.parted import is_parted, own
from protection.released import ReleasedModel
from protection.seeds import seeded
from protection.sharding import is_sharded
from protection.tasks import Examples, Loss
from protection.workers import ALONE, Workers


class BatchGradient(NamedTuple):
    """Of the mean over a batch, the same on every worker of the group."""

    grads: list[Tensor]
    loss: Tensor
    accuracy: Tensor


def batch_gradient(
    model: ReleasedModel,
    examples: Examples,
    loss_of: Loss,
    wanted: Sequence[Tensor],
    *,
    key: tuple[int | str, ...],
    num_parts: int = 1,
    group: Workers = ALONE,
) -> BatchGradient:
    """Gradient of the mean of ``loss_of`` with respect to ``wanted``.

    The result is the same for any group, and, where nothing looks across the batch as BatchNorm
    does, for any number of parts, to summation order.

    Args:
        model: in parts over ``group`` if that has more than one worker.
        examples: the whole batch, the same on every worker.
        loss_of: mean over examples, of answers and targets.
        wanted: parameters of ``model``.
        key: names what dropout and the like draw in each part. A batch in one part draws from the
            global generators as they are.
        num_parts: computed one after another by the workers of ``group`` between them; a multiple
            of their number.
        group: who shares the parts.
    """
    grads: list[Tensor] = []
    losses, right = [], []
    for part in group.share(num_parts):
        shard = examples.shard(part, num_shards=num_parts) if num_parts > 1 else examples
        with nullcontext() if num_parts == 1 else seeded(*key, part, device=model.device):
            outputs = model(*shard.inputs)
        share = len(shard.targets) / len(examples.targets)
        part_loss = loss_of(outputs, shard.targets) * share
        part_grads = gradients(model, part_loss, wanted)
        if grads:
            for total, grad in zip(grads, part_grads, strict=True):
                total += grad
        else:
            grads = _apart(part_grads) if num_parts > 1 else part_grads
        del part_grads  # or the next part's are held beside them
        losses.append(part_loss.detach())
        right.append(model.task.rightness(outputs.detach(), shard.targets).float().sum())
    loss, num_right = torch.stack(losses).sum(), torch.stack(right).sum()
    # A head that was drawn anew is in one piece on every worker.
    group.sum_in_place([loss, num_right, *(g for g in grads if not is_parted(g))])
    return BatchGradient(grads, loss, num_right / len(examples.targets))


def gradients(model: ReleasedModel, loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``loss``; of parameters in parts the sum over the group, which must all call it.

    No parameter's own ``grad`` is changed.
    """
    if not is_sharded(model):
        return list(torch.autograd.grad(loss, wanted))
    # FSDP sums what a backward pass leaves at the parameters, so at all of them.
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [cast(Tensor, parameter.grad) for parameter in wanted]
    for parameter in model.parameters():
        parameter.grad = None
    return grads


def _apart(grads: list[Tensor]) -> list[Tensor]:
    """``grads``, each in memory of its own, so that it can be added to.

    Autograd may return views of one tensor: of one image, the gradient of a class token is a piece
    of that of the position embedding.
    """
    seen: set[int] = set()
    apart = []
    for grad in grads:
        storage = own(grad).untyped_storage()
        is_shared = storage.nbytes() != own(grad).nbytes or storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        apart.append(grad.clone() if is_shared else grad)
    return apart
