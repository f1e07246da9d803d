"""The scores of an audit: each is defined here once, with its formula.

Accuracies are fractions in [0, 1], and lists of them are in the order of the seeds. Two trainings
of one seed see the same images in the same order, so they are compared as a pair, and the interval
is that of their difference.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from scipy import stats

STARTS: Final = ("protected", "unprotected", "scratch")


class Estimate(NamedTuple):
    """Mean over seeds and half the width of its 95 % interval, which one seed does not give."""

    mean: float
    margin: float | None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean of ``values`` and half of Student's interval, ``t(0.975, n - 1) s / sqrt(n)``."""
    if len(values) == 0:
        raise ValueError("values is empty; expected one accuracy for each seed")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(mean, None)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    return Estimate(mean, float(stats.t.ppf(0.975, len(values) - 1)) * error)


def is_clear(difference: Estimate) -> bool | None:
    """Whether the interval leaves 0 out; None for one seed, which has no interval."""
    return None if difference.margin is None else abs(difference.mean) > difference.margin


def intactness(unprotected: float, protected: float) -> float:
    """Original accuracy that the protection cost, ``A(unprotected) - A(protected)``; 0: intact."""
    return unprotected - protected


def transfer_gain(protected: Sequence[float], scratch: Sequence[float]) -> Estimate:
    """What the protected weights are worth to an adversary: mean of ``A(protected) - A(scratch)``.

    Accuracies are on restricted test images after the last epoch. Of an audit counts the greatest
    over its cells, as `holds` says.
    """
    return _mean_difference(protected, scratch)


def holds(gain: Estimate) -> bool:
    """Whether a protection held in a cell: ``gain <= 0``, fine-tuning beats scratch on no average.

    A protection held if it did in every cell.
    """
    return gain.mean <= 0


def trainability(protected: Sequence[float], unprotected: Sequence[float]) -> Estimate:
    """What is left to an honest user: mean of ``A(protected) - A(unprotected)`` on a benign domain.

    0: the protected model adapts to unrelated tasks as well as the unprotected; below: worse.
    """
    return _mean_difference(protected, unprotected)


def accuracy_cost(clean: Sequence[float], protected: Sequence[float]) -> Estimate:
    """What an appropriator loses by protected images: mean of ``peak(clean) - peak(protected)``.

    At most 0: the protection did nothing to it.
    """
    return _mean_difference(clean, protected)


def _mean_difference(values: Sequence[float], others: Sequence[float]) -> Estimate:
    return estimate([value - other for value, other in zip(values, others, strict=True)])


class Cost(NamedTuple):
    """An adversary's cost ratio, or what it is at least: see `cost_ratio`."""

    ratio: float
    """Above 1: more training than from scratch."""
    is_bound: bool
    """Whether the ratio exceeds ``ratio``, and is not known: scratch's accuracy was not reached."""
    within_epochs: int
    """Fewest epochs that a protected start was given which never got there; else its longest."""
    epochs: list[tuple[int | None, int]]
    """What the protected start and what scratch needed, by seed; None: never got there."""


def cost_ratio(protected: Sequence[Sequence[float]], scratch: Sequence[Sequence[float]]) -> Cost:
    """Median over seeds of ``epochs(protected, a) / epochs(scratch, a)``, ``a`` scratch's last.

    ``epochs(start, a)`` is the first epoch after which the start has accuracy ``a``, counted from
    1. Both take the same number of steps an epoch, so it is the ratio of steps, too. A protected
    start that never gets there in its n epochs is *censored*: its ratio exceeds
    ``n / epochs(scratch, a)``. The median is the lower one, and where a censored ratio may be
    below it, it is a bound itself.

    Args:
        protected: accuracy after every epoch, by seed.
        scratch: likewise.
    """
    epochs: list[tuple[int | None, int]] = []
    bounds: list[tuple[float, bool]] = []
    for curve, reference in zip(protected, scratch, strict=True):
        needed, from_scratch = epochs_to(curve, reference[-1]), epochs_to(reference, reference[-1])
        assert from_scratch is not None  # the last epoch has its own accuracy
        epochs.append((needed, from_scratch))
        bounds.append(((needed or len(curve)) / from_scratch, needed is None))
    bounds.sort()  # at equal ratios the censored one is the greater
    lower_half = bounds[: (len(bounds) + 1) // 2]
    given = [len(curve) for curve, (needed, _) in zip(protected, epochs, strict=True) if not needed]
    return Cost(
        ratio=lower_half[-1][0],
        is_bound=any(is_censored for _, is_censored in lower_half),
        within_epochs=min(given, default=max(map(len, protected))),
        epochs=epochs,
    )


def epochs_to(curve: Sequence[float], accuracy: float) -> int | None:
    """First epoch, counted from 1, after which ``curve`` is at ``accuracy``; None if never."""
    return next((n for n, value in enumerate(curve, start=1) if value >= accuracy), None)


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds after every epoch; a curve that ended early keeps its last value."""
    length = max(map(len, curves))
    held = [[*curve, *[curve[-1]] * (length - len(curve))] for curve in curves]
    return [float(value) for value in np.mean(held, axis=0)]
