"""What must hold on a GPU as on a CPU; needs CUDA."""

import math

import pytest
import torch

from protection.audit.attacks import Attack
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.fine_tuning import fine_tune
from protection.audit.methods import AUDIT_METHODS
from protection.audit.preparations import PREPARATIONS
from tests.conftest import random_images
from tests.protection.audit.attacking import attack, means, network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


@pytest.mark.parametrize(
    "an_attack",
    [
        *(attack(method=name) for name in AUDIT_METHODS),
        *(attack(preparation=name) for name in PREPARATIONS),
        *(attack(augmentation=name) for name in AUGMENTATIONS),
    ],
    ids=str,
)
def test_every_attack_runs_on_the_gpu_and_leaves_the_model_there(an_attack: Attack) -> None:
    model, images = network().cuda(), random_images(40)
    generators = torch.get_rng_state(), torch.cuda.get_rng_state()
    for metrics in fine_tune(model, an_attack, images, images, epochs=2, seed=0, means=means()):
        assert math.isfinite(metrics.loss)
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert torch.equal(torch.cuda.get_rng_state(), generators[1])
