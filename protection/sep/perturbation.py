"""The perturbation of an image: a signed step, the budget, and 8-bit levels."""

import torch
from torch import Tensor


def signed_step(protected: Tensor, gradient: Tensor, *, step_size: float) -> Tensor:
    """``protected`` moved by ``step_size`` against the sign of ``gradient``.

    Where the gradient is zero nothing moves. Source: SEP, equation 4.
    """
    return protected - step_size * gradient.sign().to(protected.dtype)


def project(protected: Tensor, clean: Tensor, *, epsilon: float) -> Tensor:
    """The point nearest to ``protected`` that is inside the budget around ``clean`` and in [0, 1].

    Args:
        protected: ``(..., C, H, W)`` float.
        clean: likewise, in [0, 1].
        epsilon: l-infinity budget in the same scale, 0 < epsilon <= 1.

    Returns:
        Within ``epsilon`` of ``clean``, up to one rounding.

    Raises:
        ValueError: the shapes differ, or ``epsilon`` is out of range.
    """
    if protected.shape != clean.shape:
        raise ValueError(
            f"protected has shape {tuple(protected.shape)}, but clean has {tuple(clean.shape)}; "
            "expected the same"
        )
    if not 0 < epsilon <= 1:
        hint = f" (did you mean {epsilon:g}/255?)" if 1 < epsilon <= 255 else ""
        raise ValueError(
            f"epsilon is {epsilon}, but pixels are in [0, 1]; expected 0 < epsilon <= 1{hint}"
        )
    inside = torch.minimum(torch.maximum(protected, clean - epsilon), clean + epsilon)
    return inside.clamp(0, 1)


def to_levels(images: Tensor) -> Tensor:
    """Return ``images``, float in [0, 1], as uint8.

    Rounded to the nearest level: truncation moves a pixel that a float32 leaves a hair under its
    level to the level below, out of the budget.
    """
    return (images * 255).round().to(torch.uint8)
