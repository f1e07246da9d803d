"""What must hold on a GPU as on a CPU; needs CUDA."""

import pytest
import torch

from protection.models import ModelConfig, build_model
from protection.sophon.episode import simulate
from protection.sophon.losses import inverse_cross_entropy
from tests.conftest import tiny_classifier
from tests.protection.sophon.test_episode import episode, gradient_of, reference_gradient

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_episode_gradient_equals_the_references_on_the_gpu() -> None:
    an_episode = episode(5)
    model = tiny_classifier(dtype=torch.float64).cuda()
    expected = reference_gradient(an_episode, inverse_cross_entropy)
    for ours, reference in zip(gradient_of(model, an_episode), expected, strict=True):
        # Another order of summation in float64, through five steps.
        torch.testing.assert_close(ours.cpu(), reference, rtol=1e-9, atol=1e-9)


def test_episode_leaves_model_and_both_global_generators_bit_identical_on_the_gpu() -> None:
    model = tiny_classifier(dropout=0.5).cuda()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generators = torch.get_rng_state(), torch.cuda.get_rng_state()
    gradient_of(model, episode(method="redrawn_head", optimizer="adam"))
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert torch.equal(torch.cuda.get_rng_state(), generators[1])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_peak_memory_does_not_grow_with_the_length() -> None:
    config = ModelConfig(architecture="timm/resnet18", image_size=8)
    model = build_model(config, num_classes=3).cuda()
    gradient = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]

    def peak(length: int) -> int:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        simulate(model, episode(length), suppression_loss=inverse_cross_entropy, gradient=gradient)
        return torch.cuda.max_memory_allocated() - before

    peak(1)
    assert peak(50) <= 1.05 * peak(5)
