"""One Ray Train worker's view: its device, its share of the work, and the sum over all workers."""

import functools
from collections.abc import Sequence
from typing import NamedTuple, cast

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import get_device
from torch import Tensor

from protection.workers import ALONE, Workers


def current_workers() -> Workers:
    """Return the group this process belongs to; call it inside a train loop."""
    context = ray.train.get_context()
    if context.get_world_size() == 1:
        return ALONE
    return Workers(context.get_world_rank(), context.get_world_size(), sum_over_workers)


class WorkerGroups(NamedTuple):
    """Workers in groups of equal size, seen from one of them."""

    across: Workers
    """This worker's peers, one in each group: groups share the units of work."""
    within: Workers
    """This worker's own group, which computes one unit together."""


def current_groups(group_size: int) -> WorkerGroups:
    """Return the groups of ``group_size`` consecutive ranks; all workers must call it."""
    everyone = current_workers()
    if group_size == 1:
        return WorkerGroups(everyone, ALONE)
    num_groups = everyone.size // group_size
    group, member = divmod(everyone.rank, group_size)
    # Every worker must create every process group, its own and the others', in the same order.
    within = [
        _new_group(range(first, first + group_size))
        for first in range(0, everyone.size, group_size)
    ]
    across = [_new_group(range(m, everyone.size, group_size)) for m in range(group_size)]
    return WorkerGroups(
        Workers(group, num_groups, functools.partial(sum_over_workers, group=across[member])),
        Workers(member, group_size, functools.partial(sum_over_workers, group=within[group])),
    )


def _new_group(ranks: range) -> dist.ProcessGroup:
    # What a worker outside the group gets is no ProcessGroup, and is never used.
    return cast(dist.ProcessGroup, dist.new_group(list(ranks)))


def sum_over_workers(tensors: Sequence[Tensor], *, group: dist.ProcessGroup | None = None) -> None:
    """Add each of ``tensors`` over the workers, in place, with one all-reduce for each dtype.

    ``group`` restricts it to some of the workers.

    One call on a flat copy costs a copy and saves a launch and a latency for every tensor of the
    model.
    """
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat, group=group)
        for tensor, part in zip(alike, torch.split(flat, [t.numel() for t in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


def current_device() -> torch.device:
    """Return the device that Ray gave this worker."""
    device = get_device()
    assert isinstance(device, torch.device)
    return device
