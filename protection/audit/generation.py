"""What a denoiser is worth after fine-tuning: its error by noise level, and its images' statistics.

FID and KID compare features of drawn images with those of real ones. Which features is for the
user to say: the published Inception network knows photographs, and nothing of digits or scans.

Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule, 2017 (FID); Binkowski et al.,
Demystifying MMD GANs, 2018 (KID).
"""

import warnings
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from protection.batches import Images, read_batch
from protection.denoisers import Denoiser
from protection.denoising import explained, noised_at
from protection.preservation import evaluating
from protection.seeds import generator, seeded

_BLOCK_SIZE: Final = 256
# KID is the mean over subsets; the authors take 100 of 1000 images, where there are as many.
_LARGEST_SUBSET: Final = 1000


def error_by_timestep(model: Denoiser, images: Images, *, num_bins: int) -> list[float]:
    """Mean squared error in each of ``num_bins`` equal parts of the schedule, least noise first.

    Every image is measured once in each; the noise is the same for every model.
    """
    blocks = torch.split(torch.arange(len(images)), _BLOCK_SIZE)
    num_timesteps = len(model.alphas_cumprod)
    sums = torch.zeros(num_bins, dtype=torch.float64, device=model.device)
    with evaluating(model):
        for number, block in enumerate(blocks):
            clean = model.scaled(read_batch(images, block, device=model.device).images)
            for part in range(num_bins):
                rng = generator("error by timestep", number, part)
                place = (part + torch.rand(len(block), generator=rng)) / num_bins
                (noisy, timesteps), noise = noised_at(
                    clean,
                    model.alphas_cumprod,
                    timesteps=(place * num_timesteps).long().clamp(max=num_timesteps - 1),
                    noise=torch.randn(clean.shape, generator=rng),
                )
                sums[part] += (1 - explained(model(noisy, timesteps), noise)).double().sum()
    errors: list[float] = (sums / len(images)).tolist()
    return errors


class Distances(NamedTuple):
    """How far drawn images are from real ones; the less, the more alike."""

    fid: float
    kid: float


def distances(drawn: Tensor, real: Tensor, *, features: nn.Module) -> Distances:
    """FID and KID of ``drawn`` from ``real`` images.

    Args:
        drawn: ``(N, C, H, W)`` uint8, at least 2.
        real: ``(M, C, H, W)`` uint8, likewise.
        features: from ``(B, 3, H, W)`` in [0, 1] to ``(B, D)``.

    Raises:
        ValueError: ``features`` gives something else.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    network = _Features(features)
    network(real[:1])
    subset = min(len(drawn), len(real), _LARGEST_SUBSET)
    fid = FrechetInceptionDistance(feature=network)
    with warnings.catch_warnings():  # that it keeps all features in memory
        warnings.simplefilter("ignore", UserWarning)
        kid = KernelInceptionDistance(feature=network, subset_size=subset)
    for is_real, images in ((True, real), (False, drawn)):
        for block in torch.split(images, _BLOCK_SIZE):
            fid.update(block, real=is_real)
            kid.update(block, real=is_real)
    with seeded("distances", device=torch.device("cpu")):  # KID draws its subsets
        return Distances(fid.compute().item(), kid.compute()[0].item())


class _Features(nn.Module):
    """The user's network, given what it wants."""

    num_features = 0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        colours = images.float().div(255).expand(-1, 3, -1, -1)
        found = self.network(colours)
        if not isinstance(found, Tensor) or found.shape[:1] != images.shape[:1] or found.ndim != 2:
            shown = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"features of {len(images)} images are {shown}; expected a tensor ({len(images)}, "
                "D) from the feature network"
            )
        self.num_features = found.shape[1]
        return found.double()
