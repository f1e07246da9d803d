"""SEP on a CUDA device: the budget, and the same perturbation as on the CPU but for rounding."""

import pytest
import torch

from protection.models import ModelConfig, build_model
from protection.sep.algorithm import perturb
from protection.sep.config import SepConfig
from protection.sep.gradients import build_ensemble
from protection.sep.trajectory import Member, freeze
from tests.protection.sep.members import random_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

IMAGES = random_pixels(16, 3, 32, 32)
TARGETS = torch.arange(16) % 10


def perturbed(device: str, **changes: object) -> torch.Tensor:
    config = SepConfig(epsilon_levels=4, members=3, steps=5, **changes)
    members = {}
    for number in range(3):
        torch.manual_seed(number)
        model = build_model(
            ModelConfig(architecture="timm/resnet18", image_size=32, small_image_stem=True),
            num_classes=10,
        )
        members[number] = Member(freeze(model).to(device), None)
    ensemble = build_ensemble(
        members,
        size=3,
        vectorised_members=config.vectorised_members,
        precision=getattr(torch, config.precision),
    )
    return torch.stack(perturb(IMAGES, TARGETS, ensemble, image_size=32, config=config))


@pytest.mark.parametrize(
    "changes", [{}, {"precision": "bfloat16"}, {"vectorised_members": 3}], ids=str
)
def test_gpu_stays_in_budget_and_mostly_agrees_with_the_cpu(changes: dict[str, object]) -> None:
    found, expected = perturbed("cuda", **changes), perturbed("cpu")
    clean = torch.stack(IMAGES).int()
    assert int((found.int() - clean).abs().max()) <= 4
    # A sign differs where the mean gradient is near zero; half precision has more of those.
    agreeing = float((found == expected).double().mean())
    assert agreeing > (0.6 if changes.get("precision") else 0.9)


def test_gpu_gives_the_same_bytes_twice() -> None:
    torch.backends.cudnn.deterministic = True
    assert torch.equal(perturbed("cuda"), perturbed("cuda"))
