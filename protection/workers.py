"""Sharing units of work (episodes, batch shards, blocks of images) among workers.

The guarantee: a mean over units is the same number for every number of workers. Units are dealt out
round robin, each worker sums its own in float64, and one all-reduce adds the sums. In float64 the
order of summation changes the 16th digit, which the rounding back to float32 removes.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protection.parted import own


def _alone(tensors: Sequence[Tensor]) -> None:
    """Sum over one worker: nothing to add."""


class Workers(NamedTuple):
    """The workers that share a job, seen from one of them.

    ``sum_in_place`` adds each tensor over all workers, in place; every worker must call it with
    the same shapes. Where several workers compute a unit together, ``within`` is the group that
    this one belongs to, and the others here are its peers in the other groups.
    """

    rank: int = 0
    size: int = 1
    sum_in_place: Callable[[Sequence[Tensor]], None] = _alone
    within: "Workers | None" = None

    @property
    def group(self) -> "Workers":
        """Who computes one unit together with this worker."""
        return self.within or ALONE

    def share(self, num_units: int) -> Iterable[int]:
        """Return the units in ``[0, num_units)`` that this worker computes."""
        return range(self.rank, num_units, self.size)


ALONE = Workers()


def zeros(like: Iterable[Tensor], *, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Accumulators for ``like``: zeros of the same shapes on the same devices."""
    return [torch.zeros_like(tensor, dtype=dtype) for tensor in like]


def mean_over_units(sums: Sequence[Tensor], *, num_units: int, workers: Workers) -> None:
    """Turn this worker's float64 ``sums`` into the mean over all units of all, in place."""
    workers.sum_in_place([own(total) for total in sums])
    for total in sums:
        total /= num_units
