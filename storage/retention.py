"""Which of many checkpoints to keep.

Guarantee: the newest is always kept, because it is what a run resumes from.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal


def keep_last_and_best(
    checkpoints: Sequence[tuple[str, Mapping[str, float]]],
    *,
    last: int = 1,
    best: int = 0,
    metric: str | None = None,
    mode: Literal["min", "max"] = "max",
) -> list[str]:
    """Return the names of the checkpoints to keep, in the order given.

    Args:
        checkpoints: name and metrics of each, oldest first.
        last: how many of the newest to keep, at least 1.
        best: how many of the best to keep besides, the newest ones among them counted; of equally
            good ones the newer. One whose metric is missing or not a number is none of the best.
        metric: what they are best by; None where ``best`` is 0.
        mode: whether the least or the greatest value of it is best.

    Raises:
        ValueError: a count is too small, a name comes twice, or the metric is in no checkpoint.
    """
    names = [name for name, _ in checkpoints]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"checkpoints has {min(repeated)!r} twice; expected each name once")
    if last < 1:
        raise ValueError(f"last is {last}; expected at least 1, the newest is what a run needs")
    if best < 0 or mode not in ("min", "max"):
        raise ValueError(f"best is {best} and mode {mode!r}; expected 0 or more, and min or max")
    if (metric is None) != (best == 0):
        raise ValueError(
            f"metric is {metric!r} and best is {best}; expected both, or neither (None and 0)"
        )
    kept = set(names[-last:])
    if metric is not None:
        values = {name: metrics[metric] for name, metrics in checkpoints if metric in metrics}
        if checkpoints and not values:
            known = sorted({key for _, metrics in checkpoints for key in metrics})
            raise ValueError(
                f"metric is {metric!r}, which no checkpoint has; expected one of"
                f" {', '.join(known) or '(they have none)'}"
            )
        ranked = [name for name in reversed(names) if not math.isnan(values.get(name, math.nan))]
        # Stable in reverse as well: of equals the newer stays first.
        ranked.sort(key=values.__getitem__, reverse=mode == "max")
        kept.update(ranked[:best])
    return [name for name in names if name in kept]
