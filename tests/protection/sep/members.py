"""Different small members for the tests of SEP."""

import torch

from protection.models import Classifier
from protection.sep.trajectory import freeze
from tests.conftest import TinyNetwork


def tiny_models(count: int, *, num_classes: int = 4) -> list[Classifier]:
    """Frozen classifiers of 8x8 images in float64, with running statistics of their own.

    Double, so that a comparison with the reference turns on the algorithm and not on rounding.
    """
    models = []
    with torch.random.fork_rng():
        for number in range(count):
            torch.manual_seed(100 + number)
            network = TinyNetwork(num_classes)
            network.norm.running_mean.normal_()
            network.norm.running_var.uniform_(0.5, 2)
            models.append(freeze(Classifier(network, num_classes=num_classes).double()))
    return models


def random_pixels(count: int, *shape: int, seed: int = 0) -> list[torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(256, shape, dtype=torch.uint8, generator=rng) for _ in range(count)]
