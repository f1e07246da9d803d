import os

# Before anything imports ray: no token file is written into the developer's home, no token is
# asked for.
os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from torch import Tensor, nn
from xdist.scheduler import LoadScopeScheduling

from protection.batches import TensorImages
from protection.denoisers import Denoiser, DenoiserConfig, build_denoiser
from protection.models import Classifier

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the other processes have the other cores

# A slow machine is no failure.
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


class SharedSetUp(LoadScopeScheduling):
    """Tests one by one to whichever process is free, but for those that share a dear set-up.

    Not xdist's own groups: it writes them into an attribute that this pytest does not read.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if file.endswith("/test_sharded.py"):
            return file
        return "on Ray" if _is_on_ray(self.config.rootpath / file) else nodeid


@functools.cache
def _is_on_ray(file: Path) -> bool:
    return "mark.ray" in file.read_text()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedSetUp:
    """Keep tests on Ray in one process, and so on one cluster, where several share the tests."""
    return SharedSetUp(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate-golden", action="store_true", help="write tests/golden anew; review the diff"
    )


@pytest.fixture(autouse=True, scope="session")
def cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of what tests download is left in the developer's home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RINGFENCE_CACHE", str(tmp_path_factory.mktemp("parts")))
        patch.delenv("RINGFENCE_CACHE_BYTES", raising=False)
        yield


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(20221122)


class TinyNetwork(nn.Module):
    """Convolution, BatchNorm, dropout and a linear head: everything that an episode can disturb."""

    def __init__(self, num_classes: int = 3, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(4 * 4 * 4, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        features = torch.nn.functional.avg_pool2d(self.norm(self.conv(images)).tanh(), 2)
        return self.fc(self.dropout(features.flatten(1)))


def tiny_classifier(
    num_classes: int = 3, *, dropout: float = 0.0, dtype: torch.dtype = torch.float32
) -> Classifier:
    """A classifier of 8x8 images with fixed, non-trivial weights and running statistics."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = TinyNetwork(num_classes, dropout=dropout)
        network.norm.running_mean.normal_()
        network.norm.running_var.uniform_(0.5, 2)
    return Classifier(network, num_classes=num_classes).to(dtype)


def tiny_denoiser(*, dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> Denoiser:
    """A denoiser of grey 8x8 images with 20 noise levels and fixed, non-trivial weights."""
    config = DenoiserConfig(
        image_size=8,
        channels=1,
        block_out_channels=[8, 16],
        layers_per_block=1,
        attention_sizes=[],
        dropout=dropout,
        num_train_timesteps=20,
        beta_schedule="squaredcos_cap_v2",
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return build_denoiser(config).to(dtype)


def random_images(num_images: int = 60, num_classes: int = 3, *, seed: int = 0) -> TensorImages:
    """Images whose mean brightness is their class, so that there is something to learn."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_images) % num_classes
    noise = torch.rand(num_images, 3, 8, 8, generator=rng)
    brightness = (labels.view(-1, 1, 1, 1) + noise) / num_classes
    return TensorImages((brightness * 255).byte(), labels, num_classes=num_classes)
