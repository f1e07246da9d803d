"""Learning-rate schedules: a linear warm-up, then a function of the progress after it."""

import math
from collections.abc import Callable
from typing import Final


def constant(progress: float) -> float:
    """Return 1 at any ``progress``."""
    del progress
    return 1.0


def cosine(progress: float) -> float:
    """Return 1 at the beginning, 0 at the end, and half a cosine between."""
    return 0.5 * (1 + math.cos(math.pi * progress))


SCHEDULES: Final[dict[str, Callable[[float], float]]] = {"constant": constant, "cosine": cosine}


def lr_factor(step: int, *, total: int, warmup: int, schedule: Callable[[float], float]) -> float:
    """Factor of the learning rate at ``step`` of ``total``, of which ``warmup`` rise to 1."""
    if step < warmup:
        return (step + 1) / warmup
    return schedule((step - warmup) / max(1, total - warmup))
