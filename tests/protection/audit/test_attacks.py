"""Attacks, their names and families, and the threat models made of them."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protection.audit.attacks import CONDITIONS, Attack
from protection.audit.families import AttackFamily
from protection.audit.methods import AUDIT_METHODS
from protection.audit.preparations import PREPARATIONS
from protection.audit.threat_models import THREAT_MODELS, attacks_of, not_tested
from protection.sophon.adversary import OPTIMIZERS, Strategy, StrategyFamily, redraws_head
from tests.protection.audit.attacking import any_attack, attack


def test_an_attack_is_named_by_what_is_not_as_by_default() -> None:
    plain = {"method": "all_layers", "optimizer": "sgd", "finetune_lr": 1e-3}
    plain = {**plain, "batch_size": 64, "weight_decay": 0.0}
    # The names of strategies are the keys of finished cells: those of audits begun before stay.
    assert str(Attack(**plain)) == str(Strategy(**plain)) == "all_layers sgd 0.001 batch 64"
    decayed = {**plain, "weight_decay": 5e-4}
    assert str(Attack(**decayed)) == "all_layers sgd 0.001 batch 64 wd 0.0005"
    lora = attack(method="lora", lora_rank=4, epochs_factor=3.0, schedule="cosine")
    assert str(lora) == "lora sgd 0.05 batch 16 epochs x3 cosine rank 4"
    healed = attack(preparation="heal_original", preparation_epochs=2)
    assert str(healed) == "all_layers sgd 0.05 batch 16 after heal_original for 2"


@given(st.lists(any_attack(), min_size=2, max_size=6))
def test_different_attacks_have_different_names(attacks: list[Attack]) -> None:
    assert len({str(one) for one in attacks}) == len(set(attacks))


@given(any_attack(), st.data())
def test_the_slightest_difference_shows_in_the_name(one: Attack, data: st.DataObject) -> None:
    values = dataclasses.asdict(one)
    numbers = [name for name, value in values.items() if type(value) is float]
    name = data.draw(st.sampled_from(numbers))
    near = dataclasses.replace(one, **{name: math.nextafter(values[name], math.inf)})
    assert str(near) != str(one)


def test_conditional_fields_are_completed_and_refused_elsewhere() -> None:
    assert attack(method="lora").lora_rank == CONDITIONS["lora_rank"].default == 8
    assert attack().lora_rank is None
    assert attack(preparation="distill").preparation_epochs == 5
    with pytest.raises(
        ValueError, match=r"lora_rank is 4, but method is 'all_layers', which has none.*among lora"
    ):
        attack(lora_rank=4)
    with pytest.raises(ValueError, match=r"pruned_share is 0\.5, but preparation is 'int8'"):
        attack(preparation="int8", pruned_share=0.5)


def test_a_family_is_the_product_of_the_lists_that_matter() -> None:
    family = AttackFamily(
        methods=["all_layers", "lora"],
        lora_ranks=[2, 4],
        preparations=["none", "prune"],
        pruned_shares=[0.3, 0.6],
    )
    attacks = family.attacks()
    assert len(attacks) == (1 + 2) * (1 + 2)
    assert {one.lora_rank for one in attacks} == {None, 2, 4}
    # What today's families can say comes to the same strategies.
    lists = {"methods": ["all_layers", "redrawn_head"], "optimizers": ["sgd", "adam"]}
    strategies = StrategyFamily(**lists, finetune_lrs=[0.1, 0.2]).strategies()
    assert [str(s) for s in strategies] == [
        str(a) for a in AttackFamily(**lists, finetune_lrs=[0.1, 0.2]).attacks()
    ]


def test_fields_of_families_are_those_of_attacks_in_their_order() -> None:
    for family, one in ((AttackFamily, Attack), (StrategyFamily, Strategy)):
        for lists, field in zip(dataclasses.fields(family), dataclasses.fields(one), strict=True):
            assert lists.name.removesuffix("s") == field.name.removesuffix("s")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["full"]}, "methods has 'full', which names none.*redrawn_last_block"),
        ({"methods": ["redrawn_hed"]}, r"did you mean redrawn_head\?"),
        ({"methods": ["no_module:x"]}, "methods is 'no_module:x', which cannot be imported"),
        ({"methods": ["math:no_name"]}, "methods is 'math:no_name', which cannot be .*no_name"),
        ({"methods": [":x"]}, "methods is ':x', which cannot be imported"),
        ({"optimizers": ["lion"]}, "optimizers has 'lion'.*sgd"),
        ({"schedules": ["linear"]}, "schedules has 'linear'.*expected constant, cosine"),
        ({"augmentations": ["jitter"]}, "augmentations has 'jitter'.*crop_and_flip"),
        ({"preparations": ["heal"]}, "preparations has 'heal'.*heal_original"),
        ({"finetune_lrs": [0.0]}, "finetune_lrs has 0.0; expected positive numbers"),
        ({"finetune_lrs": [float("nan")]}, "finetune_lrs has nan"),
        ({"epochs_factors": [0]}, "epochs_factors has 0; expected positive"),
        ({"weight_decays": [-1.0]}, "weight_decays has -1.0; expected non-negative"),
        ({"warmup_shares": [1.0]}, "warmup_shares has 1.0; expected at least 0, below 1"),
        ({"label_smoothings": [1.5]}, "label_smoothings has 1.5; expected at least 0, below 1"),
        ({"data_fractions": [1.0, 0.0]}, "data_fractions has 0.0; expected above 0, at most 1"),
        ({"layer_decays": [1.1]}, "layer_decays has 1.1; expected above 0, at most 1"),
        ({"pruned_shares": [1.0]}, "pruned_shares has 1.0; expected between 0 and 1"),
        ({"lora_ranks": [0]}, "lora_ranks has 0; expected positive"),
        ({"preparation_epochs": [0]}, "preparation_epochs has 0; expected positive"),
        ({"batch_sizes": []}, "batch_sizes is empty"),
    ],
)
def test_bad_family_names_value_and_fix(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttackFamily(**change)


@pytest.mark.parametrize(("name", "fewest"), [("short", 8), ("default", 24), ("thorough", 10_000)])
def test_threat_models_are_as_large_as_they_say(name: str, fewest: int) -> None:
    attacks = attacks_of(THREAT_MODELS[name])
    assert len({str(one) for one in attacks}) == len(attacks) >= fewest
    # Left of it for a domain of more classes than the model has, and for benign fine-tuning.
    assert sum(redraws_head(one.method) for one in attacks) >= fewest
    assert redraws_head(attacks[0].method)


def test_threat_models_hold_what_they_promise() -> None:
    short, default, thorough = (set(attacks_of(THREAT_MODELS[n])) for n in THREAT_MODELS)
    assert short < default < thorough
    # Without a further domain nobody can heal on it: only the thorough one asks for it.
    assert {one.preparation for one in default} == set(PREPARATIONS) - {"heal_unrelated"}
    assert {one.method for one in default} == set(AUDIT_METHODS)
    assert {one.optimizer for one in default} == set(OPTIMIZERS)
    rates = {one.finetune_lr for one in thorough}
    assert max(rates) / min(rates) >= 1e4
    assert max(one.epochs_factor for one in thorough) == 3
    assert {one.data_fraction for one in thorough} == {0.01, 0.1, 1.0}


def test_what_is_not_tested_is_named() -> None:
    assert not_tested(attacks_of(THREAT_MODELS["thorough"])) == []
    missing = not_tested([attack(method="lora", optimizer="adam")])
    assert {"method all_layers", "optimizer sgd", "preparation prune"} <= set(missing)
    assert not {"method lora", "optimizer adam", "preparation none"} & set(missing)
