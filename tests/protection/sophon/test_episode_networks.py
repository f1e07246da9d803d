"""Episodes on every kind of network: nothing that one disturbs is left disturbed."""

import pytest
import torch
from torch import Tensor, nn

from protection.models import Classifier
from protection.sophon.adversary import Strategy
from protection.sophon.episode import Episode, simulate
from protection.sophon.losses import inverse_cross_entropy
from tests.tiny_networks import TINY, images, tiny_network


def episode(*, seed: int = 11, num_classes: int = 3, method: str = "redrawn_head") -> Episode:
    strategy = Strategy(
        method=method, optimizer="adam", finetune_lr=0.01, batch_size=4, weight_decay=0.01
    )
    restricted = images(num_classes=num_classes, seed=3)
    return Episode(seed, restricted, strategy, length=2, query_size=3)


def gradient_of(model: Classifier, an_episode: Episode) -> list[Tensor]:
    gradient = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    simulate(model, an_episode, suppression_loss=inverse_cross_entropy, gradient=gradient)
    return gradient


def is_random(module: nn.Module) -> bool:
    rate = getattr(module, "drop_prob", None) or getattr(module, "p", None)
    return isinstance(rate, float) and rate > 0


@pytest.mark.parametrize("name", TINY)
def test_every_network_is_bit_identical_after_an_episode(name: str) -> None:
    model = tiny_network(name)
    assert any(is_random(module) for module in model.modules())
    # As after training: what an untrained norm holds is not told from what it is reset to.
    for buffer in model.network.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    head = model.head
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms[:1]:
        norm.eval()  # a module that the user froze
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    gradient = gradient_of(model, episode(num_classes=5))

    assert model.head is head
    assert [module.training for module in model.modules()] == modes
    assert state.keys() == model.state_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    for (key, _), total in zip(model.named_parameters(), gradient, strict=True):
        is_head = key.startswith(f"network.{model.head_name}.")
        assert (total.abs().max() == 0) == is_head or "relative_position" in key, key


@pytest.mark.parametrize("name", TINY)
def test_an_episode_of_every_network_is_its_seeds_alone(name: str) -> None:
    model = tiny_network(name)
    first = gradient_of(model, episode())
    torch.rand(7)  # what others drew meanwhile makes no difference
    again, other = gradient_of(model, episode()), gradient_of(model, episode(seed=12))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
