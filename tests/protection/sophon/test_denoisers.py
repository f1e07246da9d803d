"""SOPHON on a denoiser: the same episode, suppression and reinforcement as on a classifier."""

import copy

import pytest
import torch
from torch import Tensor

from protection.denoising import DENOISING
from protection.sophon.adversary import Strategy
from protection.sophon.algorithm import protect, start
from protection.sophon.config import SophonConfig
from protection.sophon.domains import Domains, check_domains
from protection.sophon.episode import Episode, simulate
from protection.sophon.losses import SUPPRESSION_LOSSES
from protection.sophon.suppression import suppression_gradient
from protection.tasks import CLASSIFICATION
from protection.workers import Workers
from tests.conftest import random_images, tiny_denoiser
from tests.protection.sophon.test_algorithm import a_config, family
from tests.protection.sophon.test_episode import steps
from tests.references import sophon as references

LOSSES = SUPPRESSION_LOSSES[DENOISING.name]


def episode(length: int = 3, seed: int = 11) -> Episode:
    strategy = Strategy(
        method="all_layers", optimizer="sgd", finetune_lr=0.05, batch_size=8, weight_decay=0.0
    )
    return Episode(seed, random_images(seed=3), strategy, length, query_size=5)


def sophon(**changes: object) -> SophonConfig:
    values = {
        "suppression_loss": "denial_of_service",
        "adversary": [family(finetune_lrs=[0.05])],
        "rounds": 3,
    }
    return a_config(**{**values, **changes})


def domains() -> Domains:
    return Domains(random_images(60, seed=1), random_images(30, seed=4), [random_images(seed=2)])


@pytest.mark.parametrize("name", LOSSES)
def test_episode_gradient_equals_unrolled_sgd_with_all_graphs_kept(name: str) -> None:
    an_episode, model = episode(), tiny_denoiser(dtype=torch.float64)
    gradient = [torch.zeros_like(p) for p in model.parameters()]
    outcome = simulate(model, an_episode, suppression_loss=LOSSES[name], gradient=gradient)
    reference = references.episode_loss(
        model.train(),
        steps(model, an_episode),
        finetune_lr=0.05,
        suppression_loss=getattr(references, name),
        training_loss=lambda predicted, noise: ((predicted - noise) ** 2).mean(),
    )
    torch.testing.assert_close(outcome.query_losses.mean(), reference.detach())
    expected = torch.autograd.grad(reference, list(model.parameters()))
    for ours, theirs in zip(gradient, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_episode_leaves_a_denoiser_and_the_global_generator_bit_identical() -> None:
    model = tiny_denoiser(dropout=0.3).eval()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    gradient = [torch.zeros_like(p) for p in model.parameters()]
    simulate(model, episode(), suppression_loss=LOSSES["denial_of_service"], gradient=gradient)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_two_workers_find_the_gradient_of_one() -> None:
    model, episodes = tiny_denoiser(), [episode(2, seed) for seed in (1, 2)]
    loss = LOSSES["negated_mse"]
    alone = suppression_gradient(model, episodes, suppression_loss=loss)
    parts: list[list[Tensor]] = []

    def keep(tensors: list[Tensor]) -> None:
        parts.append([tensor.clone() for tensor in tensors])

    for rank in range(2):
        workers = Workers(rank, 2, keep)
        suppression_gradient(model, episodes, suppression_loss=loss, workers=workers)
    for ours, first, second in zip(alone.gradient, parts[0], parts[2], strict=True):
        torch.testing.assert_close(ours, ((first + second) / 2).float())


def test_rounds_then_restore_then_rounds_equal_all_rounds_bitwise() -> None:
    config = sophon(suppression_lr=1e-4, reinforcement_lr=1e-4)
    whole = start(tiny_denoiser(), config)
    metrics = list(protect(whole, domains(), config=config))
    first = start(tiny_denoiser(), config)
    next(protect(first, domains(), config=config))
    resumed = start(tiny_denoiser(), config)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert list(protect(resumed, domains(), config=config)) == metrics[1:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_rounds_bring_the_query_loss_down() -> None:
    config = sophon(rounds=6, reinforcement_steps=0, suppression_lr=3e-3)
    rounds = list(protect(start(tiny_denoiser(), config), domains(), config=config))
    assert rounds[-1].query_loss < 0.7 * rounds[0].query_loss


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"suppression_loss": "kl_to_uniform"},
            "suppression_loss is 'kl_to_uniform', but the model's task is denoising; expected one "
            "of denial_of_service, negated_mse",
        ),
        (
            {"adversary": [family(methods=["head_only"])]},
            "methods has 'head_only', but a model for denoising has no head; expected all_layers",
        ),
    ],
)
def test_what_a_denoiser_does_not_have_is_refused(changes: dict[str, object], message: str) -> None:
    config = sophon(**changes)
    with pytest.raises(ValueError, match=message):
        next(protect(start(tiny_denoiser(), config), domains(), config=config))


def test_a_classifier_has_no_loss_of_denoisers() -> None:
    config = sophon()
    with pytest.raises(ValueError, match="'denial_of_service', but the model's task is classif"):
        check_domains(domains(), task=CLASSIFICATION, model_classes=3, config=config)
