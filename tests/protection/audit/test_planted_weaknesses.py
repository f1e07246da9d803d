"""An audit is worth what it finds: weaknesses that were planted are found."""

import copy
from collections.abc import Callable

import pytest
import torch

from protection.audit.attacks import Attack, Means
from protection.audit.threat_models import THREAT_MODELS, attacks_of
from protection.evaluation import accuracy
from protection.models import Classifier, redrawn_head, replace_head
from protection.seeds import generator
from protection.sophon.adversary import redraws_head
from tests.conftest import tiny_classifier
from tests.protection.audit.attacking import IMAGES, TEST, attack, curve

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def unprotected() -> Classifier:
    """A network that has learned the restricted domain already: it is worth all to an adversary."""
    model = tiny_classifier()
    assert curve(model, attack(optimizer="adam"), epochs=40)[-1].test_accuracy > 0.95
    return model


def scrambled(model: Classifier) -> Classifier:
    """What a naive protection publishes: the model with the rows of its head permuted."""
    protected = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in protected.head.parameters():
            parameter.copy_(parameter[[1, 2, 0]])
    assert accuracy(protected, TEST, device=CPU) < 0.05
    return protected


def random_head(model: Classifier) -> Classifier:
    """Another one: the model with a head drawn anew."""
    protected = copy.deepcopy(model)
    replace_head(protected, redrawn_head(protected, num_classes=3, rng=generator("planted")))
    assert accuracy(protected, TEST, device=CPU) < 0.5
    return protected


OWN = Means(fresh=tiny_classifier, original=IMAGES)


@pytest.mark.parametrize("weaken", [scrambled, random_head])
@pytest.mark.parametrize(
    "an_attack",
    [one for one in attacks_of(THREAT_MODELS["short"]) if redraws_head(one.method)],
    ids=str,
)
def test_a_protection_of_the_head_alone_is_broken_by_every_short_attack_that_redraws_it(
    an_attack: Attack, weaken: Callable[[Classifier], Classifier], unprotected: Classifier
) -> None:
    broken, reference = (
        curve(model, an_attack, epochs=60, means=OWN)[-1].test_accuracy
        for model in (weaken(unprotected), copy.deepcopy(unprotected))
    )
    assert broken > 0.7  # a redrawn block is most of this network: there the reference is no better
    assert broken > reference - 0.05


def test_healing_gets_through_where_the_same_attack_fails_without(unprotected: Classifier) -> None:
    mild = attack(optimizer="adam", finetune_lr=1e-3)
    healing = attack(
        optimizer="adam",
        finetune_lr=1e-3,
        preparation="heal_original",
        preparation_epochs=40,
        preparation_lr=0.02,
    )
    plain, healed = (
        curve(scrambled(unprotected), each, epochs=3, means=OWN) for each in (mild, healing)
    )
    assert plain[-1].test_accuracy < 0.3
    assert healed[-1].test_accuracy > 0.9


def test_pruning_costs_what_was_pruned_and_fine_tuning_brings_it_back(
    unprotected: Classifier,
) -> None:
    pruned = {"preparation": "prune", "pruned_share": 0.95}
    frozen = attack(**pruned, finetune_lr=1e-9)
    assert curve(copy.deepcopy(unprotected), frozen, epochs=1)[-1].test_accuracy < 0.9
    trained = attack(**pruned, optimizer="adam", finetune_lr=0.01)
    assert curve(copy.deepcopy(unprotected), trained, epochs=30)[-1].test_accuracy > 0.95
