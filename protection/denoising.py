"""Denoising: what a diffusion model is trained to do, and how wrong it is at which noise level.

A denoiser answers noisy images with the noise in them::

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps,    L = || eps - eps_theta(x_t, t) ||^2 / (C H W)

Noise has variance 1, so who predicts none has a mean squared error (MSE) of 1. What is called a
denoiser's *accuracy* is 1 - MSE, the share of the noise that it predicts: 1 is perfect, 0 is as
good as nothing, and below 0 is worse.

Source: Ho, Jain, Abbeel, Denoising Diffusion Probabilistic Models, 2020, equations 4 and 14.

Shapes: ``B`` batch, ``C H W`` image, ``T`` noise levels of the schedule.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from protection.seeds import generator
from protection.tasks import Examples, Task


def noised(clean: Tensor, alphas_cumprod: Tensor, *key: int | str) -> Examples:
    """Return noisy images with their timesteps, and as targets the noise.

    Timesteps are drawn evenly, one from each of B equal parts of the schedule, and dealt out at
    random: each is as likely for an image as any other.

    Args:
        clean: ``(B, C, H, W)`` in [-1, 1].
        alphas_cumprod: ``(T,)``, the share of the image's variance that is left at a timestep.
        key: names all that is drawn; the same on every device.
    """
    rng = generator(*key, "noise")
    num_images, num_timesteps = len(clean), len(alphas_cumprod)
    parts = torch.randperm(num_images, generator=rng)
    offsets = torch.rand(num_images, generator=rng, dtype=torch.float64)
    timesteps = ((parts + offsets) * num_timesteps / num_images).long()
    noise = torch.randn(clean.shape, generator=rng)
    return noised_at(clean, alphas_cumprod, timesteps=timesteps, noise=noise)


def noised_at(
    clean: Tensor, alphas_cumprod: Tensor, *, timesteps: Tensor, noise: Tensor
) -> Examples:
    """Return what `noised` does for given ``timesteps``, ``(B,)``, and ``noise``, as ``clean``."""
    timesteps, noise = timesteps.to(clean.device), noise.to(clean.device)
    left = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = left.sqrt() * clean + (1 - left).sqrt() * noise
    return Examples((noisy, timesteps), noise.to(noisy.dtype))


def explained(predicted: Tensor, noise: Tensor) -> Tensor:
    """``(B,)`` share of the noise of each image that was predicted, 1 - MSE."""
    return 1 - (predicted - noise).square().flatten(1).mean(dim=1)


def _error_growth(before: float, now: float) -> float:
    """By what share the MSE grew."""
    return (before - now) / (1 - before)


DENOISING: Final = Task(
    name="denoising",
    loss=F.mse_loss,
    rightness=explained,
    drop=_error_growth,
    has_classes=False,
    # The error depends on the noise level far more than on the image.
    draws=4,
)
