from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from protection.models import Classifier
from protection.sophon.adversary import METHODS, OPTIMIZERS, Strategy
from protection.sophon.episode import Episode, draw_batches, simulate
from protection.sophon.losses import SUPPRESSION_LOSSES, inverse_cross_entropy
from protection.tasks import CLASSIFICATION
from tests.conftest import random_images, tiny_classifier
from tests.references import sophon as references

LOSSES = SUPPRESSION_LOSSES[CLASSIFICATION.name]


def episode(length: int = 4, *, num_classes: int = 3, **strategy: object) -> Episode:
    values = {"method": "all_layers", "optimizer": "sgd", "finetune_lr": 0.05}
    return Episode(
        seed=11,
        restricted=random_images(num_classes=num_classes, seed=3),
        strategy=Strategy(**{**values, "batch_size": 12, "weight_decay": 0.0, **strategy}),
        length=length,
        query_size=6,
    )


def zeros(model: Classifier) -> list[Tensor]:
    return [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]


def gradient_of(model: Classifier, an_episode: Episode, loss=inverse_cross_entropy) -> list[Tensor]:
    gradient = zeros(model)
    simulate(model, an_episode, suppression_loss=loss, gradient=gradient)
    return gradient


def float64_batches(an_episode: Episode) -> Iterator:
    for support, query in draw_batches(an_episode, device=torch.device("cpu")):
        yield (
            support._replace(images=support.images.double()),
            query._replace(images=query.images.double()),
        )


def reference_gradient(an_episode: Episode, loss, *, second_order: bool = False) -> list[Tensor]:
    model = tiny_classifier(dtype=torch.float64).train()
    mean = references.episode_loss(
        model,
        float64_batches(an_episode),
        finetune_lr=an_episode.strategy.finetune_lr,
        suppression_loss=loss,
        second_order=second_order,
    )
    return list(torch.autograd.grad(mean, list(model.parameters())))


@pytest.mark.parametrize("name", LOSSES)
def test_episode_gradient_equals_unrolled_sgd_with_all_graphs_kept(name: str) -> None:
    an_episode = episode(5)
    actual = gradient_of(tiny_classifier(dtype=torch.float64), an_episode, LOSSES[name])
    expected = reference_gradient(an_episode, getattr(references, name))
    # Pixels are float32 / 255 in both; everything after is float64.
    for ours, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_second_order_gradient_differs_from_ours() -> None:
    an_episode = episode(5)
    first = gradient_of(tiny_classifier(dtype=torch.float64), an_episode)
    second = reference_gradient(an_episode, references.inverse_cross_entropy, second_order=True)
    distance = sum((a - b).abs().max() for a, b in zip(first, second, strict=True))
    assert distance > 1e-4


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_episode_leaves_model_and_global_generator_bit_identical(
    method: str, optimizer: str
) -> None:
    model = tiny_classifier(dropout=0.5)
    model.network.norm.eval()  # a module that the user froze
    parameters = list(model.parameters())
    parameters[0].grad = torch.ones_like(parameters[0])
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator_state = torch.get_rng_state()

    gradient_of(model, episode(method=method, optimizer=optimizer, weight_decay=0.01))

    assert torch.equal(torch.get_rng_state(), generator_state)
    assert [module.training for module in model.modules()] == modes
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(parameters[0].grad, torch.ones_like(parameters[0]))
    assert all(p.grad is None for p in parameters[1:])
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_episode_restores_the_model_when_it_raises() -> None:
    model = tiny_classifier()
    head = model.head
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls = 0

    def failing(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return inverse_cross_entropy(logits, labels)

    with pytest.raises(KeyboardInterrupt):
        gradient_of(model, episode(method="redrawn_head"), failing)
    assert model.head is head
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_same_seed_gives_the_same_gradient_and_another_seed_another() -> None:
    model = tiny_classifier(dropout=0.5)
    first, again = gradient_of(model, episode()), gradient_of(model, episode())
    other = gradient_of(model, episode()._replace(seed=12))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_redrawn_head_sends_nothing_to_the_models_own_head() -> None:
    model = tiny_classifier()
    gradient = gradient_of(model, episode(method="redrawn_head", num_classes=7))
    by_name = dict(zip((n for n, _ in model.named_parameters()), gradient, strict=True))
    for name, grad in by_name.items():
        assert (grad.abs().max() == 0) == name.startswith("network.fc"), name


def test_head_only_reaches_every_layer_but_trains_the_head_alone() -> None:
    # One step: theta_1 differs from theta in the head alone, so its query gradient can be written
    # down.
    an_episode = episode(1, method="head_only")
    gradient = gradient_of(tiny_classifier(dtype=torch.float64), an_episode)
    model = tiny_classifier(dtype=torch.float64).train()
    ((support, query),) = float64_batches(an_episode)
    loss = torch.nn.functional.cross_entropy(model(support.images), support.labels)
    grads = torch.autograd.grad(loss, list(model.head.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(model.head.parameters(), grads, strict=True):
            parameter -= an_episode.strategy.finetune_lr * grad
    query_loss = inverse_cross_entropy(model(query.images), query.labels)
    expected = torch.autograd.grad(query_loss, list(model.parameters()))
    for ours, reference in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-10, atol=1e-10)


def test_support_and_query_are_disjoint_at_every_step() -> None:
    an_episode = episode(8)
    for support, query in draw_batches(an_episode, device=torch.device("cpu")):
        assert len(support.labels) == 12
        assert len(query.labels) == 6
        both = torch.cat([support.images, query.images]).flatten(1)
        assert len(torch.unique(both, dim=0)) == 18
