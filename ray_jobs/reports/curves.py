"""Trainings of several seeds as a report holds them: what they reached, and every epoch of them."""

from collections.abc import Sequence
from typing import Any

from protection.audit.scores import estimate, mean_curve
from ray_jobs.reporting import Row, finite_or_null


def accuracies(curves: Sequence[Sequence[Row]]) -> list[list[float]]:
    """Test accuracy after every epoch, by seed."""
    return [[float(row["test_accuracy"]) for row in curve] for curve in curves]


def finals(curves: Sequence[Sequence[Row]]) -> list[float]:
    """Test accuracy after the last epoch, by seed."""
    return [curve[-1] for curve in accuracies(curves)]


def peaks(curves: Sequence[Sequence[Row]]) -> list[float]:
    """Greatest test accuracy of any epoch, by seed."""
    return [max(curve) for curve in accuracies(curves)]


def measured(curves: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """The estimates of ``curves``, their mean, and the curves; as JSON.

    Args:
        curves: one a seed, one row an epoch with its ``test_accuracy``.
    """
    return {
        "final": estimate(finals(curves))._asdict(),
        "peak": estimate(peaks(curves))._asdict(),
        "curve": {
            "mean": mean_curve(accuracies(curves)),
            # A diverged loss is not finite.
            "seeds": [
                [{key: finite_or_null(value) for key, value in row.items()} for row in curve]
                for curve in curves
            ],
        },
    }


def require_curves(curves: Sequence[Sequence[Row]], *, num_seeds: int, name: str) -> None:
    """Refuse trainings that are not one a seed, or of no epoch.

    Raises:
        ValueError: says of which ``name``.
    """
    lengths = [len(curve) for curve in curves]
    if len(lengths) != num_seeds or 0 in lengths:
        raise ValueError(
            f"{name} has curves of {lengths} epochs; expected {num_seeds}, one a seed, of at least "
            "one epoch each"
        )
