"""SEP on a CUDA device: the budget, and the same perturbation as on the CPU but for rounding."""

import copy

import pytest
import torch

from protection.models import ModelConfig, build_model
from protection.sep.algorithm import perturb
from protection.sep.config import SepConfig
from protection.sep.gradients import build_ensemble
from protection.sep.trajectory import Member, freeze, in_host_memory
from tests.protection.sep.members import random_pixels

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

IMAGES = random_pixels(16, 3, 32, 32)
TARGETS = torch.arange(16) % 10


def perturbed(device: str, **changes: object) -> torch.Tensor:
    config = SepConfig(epsilon_levels=4, members=3, steps=5, **changes)
    torch.backends.cudnn.deterministic = True
    members, shared = {}, None
    for number in range(3):
        torch.manual_seed(number)
        model = build_model(
            ModelConfig(architecture="timm/resnet18", image_size=32, small_image_stem=True),
            num_classes=10,
        )
        if config.stream_members:
            shared = shared or copy.deepcopy(freeze(model)).to(device)
            members[number] = Member(shared, None, in_host_memory(model, pinned=True))
        else:
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


def test_members_in_host_memory_take_one_network_of_the_gpu() -> None:
    images, peaks = [], []
    for stream_members in (False, True):
        torch.cuda.reset_peak_memory_stats()
        images.append(perturbed("cuda", stream_members=stream_members))
        peaks.append(torch.cuda.max_memory_allocated())
    assert torch.equal(images[0], images[1])
    one = 4 * 11_173_962  # bytes of ResNet-18's parameters
    assert peaks[0] - peaks[1] > 1.9 * one  # of three networks


def test_gpu_gives_the_same_bytes_twice() -> None:
    assert torch.equal(perturbed("cuda"), perturbed("cuda"))
