"""How well a linear classifier tells protected images from clean ones.

An invisible change need not be an undetectable one: an appropriator who can tell which images are
protected may leave them out. The *probe* is a logistic regression trained on one half of the
image pairs and scored on the other, so 0.5 is guessing.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional as F

from protection.seeds import generator

# Below it every power is rounding error of the transform of 8-bit pixels.
_TINY: Final = 1e-9
_MAX_STEPS: Final = 200


class Detection(NamedTuple):
    """What one probe reached on the images it was not trained on."""

    balanced_accuracy: float
    """Mean of the shares of protected and of clean images that it tells rightly."""
    auc: float
    """Chance that it finds a protected image more suspicious than a clean one."""


def pixels(images: Tensor) -> Tensor:
    """``(N, C * H * W)`` float64: the images as they are, from ``(N, C, H, W)`` uint8."""
    return images.flatten(1).double() / 255


def spectrum(images: Tensor) -> Tensor:
    """``(N, H * (W // 2 + 1))`` float64: logarithm of the power at every frequency.

    Of ``(N, C, H, W)`` uint8, mean over channels. Noise that no pixel shows is seen here, where the
    image itself has little power.
    """
    amplitude: Tensor = torch.fft.rfft2(images.double() / 255).abs()
    return (amplitude.square().mean(dim=1) + _TINY).log().flatten(1)


FEATURES: Final[dict[str, Callable[[Tensor], Tensor]]] = {"pixels": pixels, "spectrum": spectrum}


def detect(protected: Tensor, clean: Tensor, *, seed: int) -> dict[str, Detection]:
    """Train and score a probe on each of `FEATURES`, by name.

    Args:
        protected: ``(N, C, H, W)`` uint8, N at least 4.
        clean: the same images before.
        seed: of the halves.
    """
    if len(protected) < 4 or protected.shape != clean.shape:
        raise ValueError(
            f"protected has shape {tuple(protected.shape)} and clean {tuple(clean.shape)}; "
            "expected the same images before and after, at least 4"
        )
    order = torch.randperm(len(protected), generator=generator(seed, "detection"))
    # An image and its protected version are in the same half, or the probe would know the image.
    train, test = order[::2], order[1::2]
    found = {}
    for name, features in FEATURES.items():
        after, before = features(protected), features(clean)
        score = _fit(after[train], before[train])
        found[name] = _judge(score(after[test]), score(before[test]))
    return found


def _fit(protected: Tensor, clean: Tensor) -> Callable[[Tensor], Tensor]:
    """Logistic regression with a ridge of 1 / N, as scikit-learn's default; returns its scores."""
    features = torch.cat([protected, clean])
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=_TINY)
    inputs = (features - mean) / std
    signs = torch.ones(len(inputs), dtype=inputs.dtype)
    signs[len(protected) :] = -1
    weights = torch.zeros(inputs.shape[1] + 1, dtype=inputs.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=_MAX_STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scores = inputs @ weights[:-1] + weights[-1]
        ridge = weights[:-1].square().sum() / (2 * len(inputs))
        total = F.softplus(-signs * scores).mean() + ridge
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    fitted = weights.detach()
    return lambda others: (others - mean) / std @ fitted[:-1] + fitted[-1]


def _judge(protected: Tensor, clean: Tensor) -> Detection:
    right = ((protected > 0).double().mean() + (clean <= 0).double().mean()) / 2
    ranks = stats.rankdata(torch.cat([protected, clean]).numpy())
    count = len(protected)
    # Mann and Whitney's U: the rank sum of one sample, less what it is at least.
    wins = float(ranks[:count].sum()) - count * (count + 1) / 2
    return Detection(right.item(), wins / (count * len(clean)))
