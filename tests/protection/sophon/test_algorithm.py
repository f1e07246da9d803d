import copy
import math
from typing import Any

import pytest
import torch

from protection.batches import TensorImages
from protection.sophon.adversary import StrategyFamily
from protection.sophon.algorithm import SophonState, draw_episodes, protect, start
from protection.sophon.config import RateChange, SophonConfig
from protection.sophon.domains import Domains
from protection.sophon.losses import inverse_cross_entropy
from protection.sophon.suppression import suppress, suppression_gradient
from protection.training import NonFiniteError, TrainingConfig, start_training, train
from tests.conftest import random_images, tiny_classifier


def family(**lists: object) -> StrategyFamily:
    return StrategyFamily(**{"finetune_lrs": [0.05], "batch_sizes": [12], **lists})


def a_config(**changes: object) -> SophonConfig:
    values = {
        "rounds": 4,
        "episodes_per_round": 2,
        "episode_length": 3,
        "query_size": 6,
        "adversary": [family(methods=["all_layers", "redrawn_head"], optimizers=["sgd", "adam"])],
        "reinforcement_batch_size": 20,
        "max_original_drop": 1.0,
    }
    return SophonConfig(**{**values, **changes})


def domains(**changes: object) -> Domains:
    original = random_images(60, seed=1)
    restricted = [random_images(40, seed=2), random_images(40, 2, seed=3)]
    return Domains(original, random_images(30, seed=4), restricted)._replace(**changes)


def trained(sophon: SophonConfig | None = None) -> SophonState:
    config = TrainingConfig(epochs=4, batch_size=20, learning_rate=0.05)
    state = start_training(tiny_classifier(dropout=0.2), config)
    list(train(state, random_images(60, seed=1), random_images(30, seed=4), config=config))
    return start(state.model, sophon or a_config())


def assert_same_weights(a: SophonState, b: SophonState) -> None:
    for name, tensor in a.model.state_dict().items():
        assert torch.equal(tensor, b.model.state_dict()[name]), name


def test_rounds_then_restore_then_rounds_equal_all_rounds_bitwise() -> None:
    config = a_config()
    whole = trained()
    metrics = list(protect(whole, domains(), config=config))
    assert [m.round_index for m in metrics] == [0, 1, 2, 3]

    first = trained()
    rounds = protect(first, domains(), config=config)
    next(rounds), next(rounds)
    kept = copy.deepcopy(first.state_dict())
    resumed = start(tiny_classifier(dropout=0.2), config)
    resumed.load_state_dict(kept)
    assert list(protect(resumed, domains(), config=config)) == metrics[2:]
    assert_same_weights(whole, resumed)


def test_cosine_takes_both_rates_down_and_a_resumed_run_with_them() -> None:
    config = a_config(rounds=4, schedule="cosine")
    state, rates = trained(config), []
    for _ in protect(state, domains(), config=config):
        optimizers = state.suppression_optimizer, state.reinforcement_optimizer
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in optimizers])
    highest = [config.suppression_lr, config.reinforcement_lr]
    for found, share in zip(rates, [1, 0.853553, 0.5, 0.146447], strict=True):
        assert found == pytest.approx([share * rate for rate in highest], rel=1e-5)
    first = trained(config)
    next(protect(first, domains(), config=config))
    resumed = start(tiny_classifier(dropout=0.2), config)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    list(protect(resumed, domains(), config=config))
    assert_same_weights(state, resumed)


def test_changed_rates_are_those_of_a_run_that_goes_on_with_them() -> None:
    changes = [RateChange(from_round=2, suppression_lr=0.004), RateChange(from_round=3)]
    changed = a_config(rate_changes=changes, schedule="cosine")
    alpha, beta = changed.suppression_lr, changed.reinforcement_lr
    rates = [changed.rates_at(index) for index in range(4)]
    assert rates == [(alpha, beta), (alpha, beta), (0.004, beta), (0.004, beta)]

    state = trained(changed)
    list(protect(state, domains(), config=changed))
    first = trained(before := a_config(schedule="cosine"))
    rounds = protect(first, domains(), config=before)
    next(rounds), next(rounds)
    after = a_config(suppression_lr=0.004, schedule="cosine")
    resumed = start(tiny_classifier(dropout=0.2), after)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    list(protect(resumed, domains(), config=after))
    assert_same_weights(state, resumed)


def test_another_seed_protects_differently() -> None:
    a, b = trained(), trained()
    list(protect(a, domains(), config=a_config(rounds=1)))
    list(protect(b, domains(), config=a_config(rounds=1, seed=1)))
    assert not torch.equal(a.model.head.weight, b.model.head.weight)


def test_first_round_is_the_papers_equations_written_out() -> None:
    """Adam's first step moves every weight by its learning rate against the gradient's sign."""
    config = a_config(rounds=1, reinforcement_steps=0, suppression_lr=1e-3)
    state = trained(config)
    before = copy.deepcopy(state.model)
    episodes = draw_episodes(0, domains().restricted, config=config)
    parts = [
        suppression_gradient(before, [episode], suppression_loss=inverse_cross_entropy).gradient
        for episode in episodes
    ]
    list(protect(state, domains(), config=config))
    for name, parameter in state.model.named_parameters():
        index = [n for n, _ in before.named_parameters()].index(name)
        gradient = (parts[0][index].double() + parts[1][index].double()) / 2
        is_clear = gradient.abs() > 1e-5  # Adam's floor is 1e-8; the clipped gradient is smaller
        moved = (parameter - dict(before.named_parameters())[name]).double()
        expected = -config.suppression_lr * gradient.sign()
        torch.testing.assert_close(moved[is_clear], expected[is_clear], rtol=0.02, atol=1e-7)


def test_a_round_that_costs_too_much_accuracy_is_rolled_back_and_the_run_goes_on() -> None:
    config = a_config(
        rounds=3,
        suppression_lr=0.9,  # destroys the model
        max_original_drop=0.1,
        reinforcement_lr=1e-4,
        max_rollbacks=9,
    )
    state = trained(config)
    metrics = list(protect(state, domains(), config=config))
    assert [m.is_rolled_back for m in metrics] == [True] * 3
    assert all(m.original_drop <= 0.1 for m in metrics)
    assert not state.suppression_optimizer.state_dict()["state"]  # as it was before the bad rounds


def test_a_run_that_only_rolls_back_stops_and_says_why() -> None:
    config = a_config(suppression_lr=0.9, max_original_drop=0.1, max_rollbacks=2)
    with pytest.raises(
        NonFiniteError, match=r"2 rounds in a row .*round 1.*original accuracy fell"
    ):
        list(protect(trained(config), domains(), config=config))


def test_a_diverging_adversary_is_rolled_back_and_named() -> None:
    wild = family(optimizers=["sgd"], finetune_lrs=[3e38])
    state = trained()
    metrics = list(protect(state, domains(), config=a_config(rounds=1, adversary=[wild])))
    assert metrics[0].is_rolled_back
    assert math.isnan(metrics[0].query_loss)
    assert all(tensor.isfinite().all() for tensor in state.model.state_dict().values())
    config = a_config(adversary=[wild], max_rollbacks=2)
    with pytest.raises(NonFiniteError, match=r"episode 0 \(all_layers sgd 3e\+38.*at step \d"):
        list(protect(trained(), domains(), config=config))


def test_broken_original_weights_stop_the_run_and_name_the_round() -> None:
    state = trained()
    with torch.no_grad():
        state.model.head.bias.fill_(torch.nan)
    with pytest.raises(
        NonFiniteError, match="training loss is nan in the reinforcement of round 0"
    ):
        list(protect(state, domains(), config=a_config()))


def test_episodes_draw_every_domain_and_strategy() -> None:
    config = a_config(episodes_per_round=64)
    restricted = domains().restricted
    episodes = draw_episodes(3, restricted, config=config)
    assert episodes == draw_episodes(3, restricted, config=config)
    assert {id(episode.restricted) for episode in episodes} == {id(d) for d in restricted}
    assert len({episode.strategy for episode in episodes}) == 4
    assert len({episode.seed for episode in episodes}) == 64
    # An episode does not change when others are drawn beside it.
    fewer = draw_episodes(3, restricted, config=a_config(episodes_per_round=5))
    assert fewer == episodes[:5]


def test_suppress_clips_the_global_norm() -> None:
    model = tiny_classifier()
    before = [p.clone() for p in model.parameters()]
    gradient = [torch.full_like(p, 3.0) for p in model.parameters()]
    count = sum(p.numel() for p in model.parameters())
    norm = suppress(model, torch.optim.SGD(model.parameters(), lr=1.0), gradient, clip_norm=0.5)
    assert norm == pytest.approx(3 * count**0.5, rel=1e-5)
    moved = torch.cat([(b - p).flatten() for b, p in zip(before, model.parameters(), strict=True)])
    assert moved.norm().item() == pytest.approx(0.5, rel=1e-4)


def test_domains_that_do_not_fit_are_refused_before_the_first_round() -> None:
    def refuse(message: str, some: Domains, **changes: object) -> None:
        with pytest.raises(ValueError, match=message):
            next(protect(trained(), some, config=a_config(**changes)))

    refuse(
        "model has 3 classes, but the original domain has 4", domains(original=random_images(60, 4))
    )
    refuse("restricted is empty", domains(restricted=[]))
    refuse(
        r"'all_layers', which keeps the model's head of 3 classes.*has 5; expected redrawn_head",
        domains(restricted=[random_images(40, 5)]),
    )
    small = TensorImages(torch.zeros(10, 3, 8, 8).byte(), torch.arange(10) % 2, num_classes=2)
    refuse(
        "12 support and 6 query images, but a restricted domain has 10", domains(restricted=[small])
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suppression_loss": "ice"}, "'ice', which names no loss; expected one of inverse_cross"),
        ({"rounds": 0}, "rounds is 0"),
        ({"schedule": "linear"}, "schedule is 'linear', which names none; expected constant, cos"),
        ({"suppression_lr": 3}, "suppression_lr is 3; expected between 0 and 1"),
        ({"max_original_drop": 5}, r"max_original_drop is 5, a share.*did you mean 0.05\?"),
        ({"clip_norm": 0}, "clip_norm is 0"),
        ({"rate_changes": [RateChange(from_round=2)] * 2}, "rounds 2, 2; expected each after"),
        ({"reinforcement_steps": -1}, "reinforcement_steps is -1"),
        ({"adversary": []}, "adversary is empty"),
        ({"reinforcement_shards": 20}, "reinforcement_shards is 20.*at most 10"),
    ],
)
def test_bad_sophon_config_names_value_and_fix(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_config(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"from_round": 0}, "from_round is 0; expected at least 1"),
        ({"from_round": 3, "reinforcement_lr": 2.0}, r"reinforcement_lr is 2\.0; expected between"),
    ],
)
def test_bad_rate_change_names_value_and_fix(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RateChange(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["al_layers"]}, "methods has 'al_layers'.*all_layers"),
        ({"optimizers": ["lion"]}, "optimizers has 'lion'.*sgd"),
        ({"finetune_lrs": [0.0]}, "finetune_lrs has 0.0; expected positive"),
        ({"weight_decays": [-1.0]}, "weight_decays has -1.0; expected non-negative"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
    ],
)
def test_bad_family_names_value_and_fix(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**change)


def test_released_settings_are_the_defaults() -> None:
    config = SophonConfig()
    (strategy,) = config.adversary[0].strategies()
    assert (strategy.method, strategy.optimizer, strategy.finetune_lr) == (
        "all_layers",
        "sgd",
        1e-4,
    )
    assert (config.episode_length, strategy.batch_size, config.query_size) == (50, 130, 20)
    assert (config.suppression_lr, config.reinforcement_lr, config.clip_norm) == (3e-4, 5e-4, 0.5)
    assert (config.episodes_per_round, config.reinforcement_steps) == (1, 1)
