"""Errors by noise level and distances of drawn images."""

import pytest
import torch
from torch import Tensor, nn

from protection.audit.generation import distances, error_by_timestep
from protection.batches import read_batch
from protection.denoisers import Denoiser
from tests.conftest import random_images, tiny_denoiser


class Scaling(nn.Module):
    """Takes a share of all that it sees for noise."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, noisy: Tensor, timesteps: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.share * noisy,)

    def to_json_string(self) -> str:
        return '{"in_channels": 1}'


def test_error_by_timestep_is_of_every_part_of_the_schedule() -> None:
    images, scheduler = random_images(300), tiny_denoiser().scheduler
    model = Denoiser(Scaling(1.0), scheduler)
    errors = error_by_timestep(model, images, num_bins=4)
    clean = model.scaled(read_batch(images, torch.arange(300), device=torch.device("cpu")).images)
    left = model.alphas_cumprod.view(4, 5)
    # x_t - eps = sqrt(a) x_0 + (sqrt(1 - a) - 1) eps, with eps of variance 1 and no mean.
    expected = left * clean.square().mean() + ((1 - left).sqrt() - 1).square()
    assert errors == pytest.approx(expected.mean(dim=1).tolist(), rel=0.04, abs=0.003)
    blind = Denoiser(Scaling(0.0), scheduler)
    assert error_by_timestep(blind, images, num_bins=2) == pytest.approx([1, 1], abs=0.03)


def test_distances_are_least_for_the_same_images_and_repeat() -> None:
    features = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 6))
    rng = torch.Generator().manual_seed(1)
    real = torch.randint(100, 200, (80, 1, 8, 8), generator=rng).byte()
    other = torch.randint(100, 200, (80, 1, 8, 8), generator=rng).byte()
    brighter = other + 50
    same, alike, far = (
        distances(drawn, real, features=features) for drawn in (real, other, brighter)
    )
    assert same.fid == pytest.approx(0, abs=1e-3)
    assert same.fid < alike.fid < far.fid
    assert alike.kid < far.kid
    state = torch.get_rng_state()
    assert distances(other, real, features=features) == alike
    assert torch.equal(torch.get_rng_state(), state)


def test_fid_is_the_papers_equation() -> None:
    features = nn.Flatten()
    rng = torch.Generator().manual_seed(2)
    real = torch.randint(256, (200, 1, 1, 1), generator=rng).byte()
    drawn = (real // 2) + 20
    # One dimension, thrice: the distance of two normal distributions, (m - m')^2 + (s - s')^2.
    a, b = (images.double().flatten() / 255 for images in (real, drawn))
    one = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    found = distances(drawn, real, features=features).fid
    assert found == pytest.approx(3 * one.item(), rel=1e-3)


def test_features_of_another_shape_are_refused() -> None:
    images = torch.zeros(4, 1, 8, 8).byte()
    with pytest.raises(ValueError, match=r"features of 1 images are \(1, 3, 8, 8\); expected"):
        distances(images, images, features=nn.Identity())
