"""What each simulated way of fine-tuning changes, and low-rank changes against their equations."""

import pytest
import torch
from torch import Tensor

from protection.lora import draw_factors
from protection.models import redrawn_head
from protection.seeds import generator
from protection.sophon.adversary import METHODS, Strategy
from protection.sophon.episode import Episode, draw_batches, simulate
from protection.sophon.fine_tuning import LORA_ALPHA, LORA_RANK, begin_fine_tuning
from protection.sophon.losses import inverse_cross_entropy
from tests.conftest import random_images, tiny_classifier
from tests.references import sophon as references
from tests.tiny_networks import tiny_network


def strategy(**changes: object) -> Strategy:
    values = {"optimizer": "sgd", "finetune_lr": 0.05, "batch_size": 12, "weight_decay": 0.0}
    return Strategy(**{**values, **changes})


def test_lora_is_the_gradient_at_the_adapted_weights() -> None:
    model = tiny_classifier(dtype=torch.float64)
    episode = Episode(11, random_images(seed=3), strategy(method="lora"), length=4, query_size=6)
    gradient = [torch.zeros_like(p) for p in model.parameters()]
    outcome = simulate(model, episode, suppression_loss=inverse_cross_entropy, gradient=gradient)

    rng = generator(11, "head")
    head = redrawn_head(model, num_classes=3, rng=rng)
    up, down = draw_factors(model.network.conv.weight, rank=LORA_RANK, rng=rng)
    losses, expected = references.low_rank_episode(
        model.train(),
        [
            (s._replace(images=s.images.double()), q._replace(images=q.images.double()))
            for s, q in draw_batches(episode, device=torch.device("cpu"))
        ],
        head={"network.fc.weight": head.weight, "network.fc.bias": head.bias},
        factors={"network.conv.weight": (up, down)},
        scale=LORA_ALPHA / LORA_RANK,
        finetune_lr=0.05,
        suppression_loss=references.inverse_cross_entropy,
    )
    torch.testing.assert_close(outcome.query_losses, losses, rtol=1e-10, atol=1e-10)
    for (name, _), ours in zip(model.named_parameters(), gradient, strict=True):
        theirs = expected.get(name, torch.zeros_like(ours))  # the model's own head was replaced
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert losses[0] != losses[-1]


def changed(method: str, name: str = "vit") -> dict[str, Tensor]:
    """What one step changes of each tensor that it does change."""
    model = tiny_network(name)
    before = {key: tensor.clone() for key, tensor in model.network.state_dict().items()}
    tuning = begin_fine_tuning(
        model, strategy(method=method), num_classes=3, rng=torch.Generator().manual_seed(1)
    )
    for _ in range(2):  # the first moves only one factor of each low-rank change
        tuning.step([torch.randn_like(parameter) for parameter in tuning.wanted])
    after = model.network.state_dict()
    return {
        key: after[key] - old for key, old in before.items() if not torch.equal(after[key], old)
    }


def test_each_method_trains_what_it_says() -> None:
    model = tiny_network("vit")
    named, head = dict(model.network.named_parameters()), {"head.weight", "head.bias"}
    assert set(changed("all_layers")) == set(changed("redrawn_head")) == set(named)
    assert set(changed("head_only")) == set(changed("redrawn_head_only")) == head
    last = {name for name in named if name.startswith(("blocks.1.", "norm."))}
    assert set(changed("last_stage")) == last | head
    vectors = {name for name, parameter in named.items() if parameter.ndim == 1}
    assert set(changed("norms_and_biases")) == vectors | head
    low_rank = changed("lora")
    matrices = {n for n, p in named.items() if n.endswith(".weight") and p.ndim > 1}
    assert set(low_rank) == matrices | head
    for name, change in low_rank.items():
        if name not in head:
            assert torch.linalg.matrix_rank(change.flatten(1), rtol=1e-4) <= LORA_RANK, name


@pytest.mark.parametrize("method", METHODS)
def test_methods_keep_or_redraw_the_head_as_they_say(method: str) -> None:
    model = tiny_network("convnext")
    head = model.head
    begin_fine_tuning(model, strategy(method=method), num_classes=3, rng=torch.Generator())
    assert (model.head is not head) == METHODS[method].redraws_head
