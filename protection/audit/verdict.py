"""From the accuracies of an audit's cells to what it says: the worst cell first.

A *cell* is one strategy on one restricted domain. It is run from three *starts*, the protected
model, the unprotected model and a from-scratch model, with several seeds each.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

STARTS: Final = ("protected", "unprotected", "scratch")


class Estimate(NamedTuple):
    """Mean over seeds and half the width of its 95 % interval, which one seed does not give."""

    mean: float
    margin: float | None


class CellVerdict(NamedTuple):
    """What one cell showed; accuracies are on restricted test images after the last epoch."""

    cell: str
    accuracies: Mapping[str, Estimate]
    """By start."""
    transfer_gain: Estimate
    """Protected minus scratch, paired by seed: what the protected weights are worth to this
    adversary."""
    holds: bool
    """Whether the mean gain is at most 0."""


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of ``values`` and the half-width of Student's 95 % interval."""
    if len(values) == 0:
        raise ValueError("values is empty; expected one accuracy for each seed")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, None)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Estimate(mean, float(stats.t.ppf(0.975, len(values) - 1)) * error)


def judge(cell: str, accuracies: Mapping[str, Sequence[float]]) -> CellVerdict:
    """Verdict on one cell from its ``accuracies`` by start, each in the same order of seeds."""
    pairs = zip(accuracies["protected"], accuracies["scratch"], strict=True)
    gain = estimate([protected - scratch for protected, scratch in pairs])
    by_start = {start: estimate(accuracies[start]) for start in STARTS}
    return CellVerdict(cell, by_start, gain, gain.mean <= 0)


def worst_first(verdicts: Iterable[CellVerdict]) -> list[CellVerdict]:
    """Verdicts by falling transfer gain: the first is the audit's headline."""
    return sorted(verdicts, key=lambda verdict: -verdict.transfer_gain.mean)
