"""Methods of fine-tuning: what is drawn anew, what is trained, from when on, and how fast.

Those that SOPHON simulates keep the head or draw a new one, as their names say. All others begin
with a new one, so they fit a domain of any number of classes.
"""

from collections.abc import Callable
from fractions import Fraction
from typing import Final, NamedTuple, cast

import torch
from torch import nn

from protection.audit.attacks import Setup
from protection.layers import stages
from protection.lora import add_adapters
from protection.models import redrawn_head, replace_head
from protection.seeds import generator
from protection.sophon.adversary import METHODS, redraws_head
from protection.sophon.fine_tuning import trained_parameters


class Group(NamedTuple):
    """Parameters that are trained alike."""

    parameters: list[nn.Parameter]
    lr_factor: float = 1.0
    begins_at: Fraction = Fraction(0)
    """Share of the epochs that pass before they are trained."""


def begin(setup: Setup, *, num_classes: int) -> list[Group]:
    """Draw anew what the attack's method draws, and return what it trains; in train mode then."""
    model = setup.model
    if redraws_head(setup.attack.method):
        rng = generator(setup.seed, "head")
        replace_head(model, redrawn_head(model, num_classes=num_classes, rng=rng))
    groups = AUDIT_METHODS[setup.attack.method](setup)
    model.train()
    return groups


def _simulated(setup: Setup) -> list[Group]:
    return [Group(trained_parameters(setup.model, METHODS[setup.attack.method]))]


@torch.no_grad()
def _redrawn_last_block(setup: Setup) -> list[Group]:
    """Take the last stage of a newly drawn network, then train all layers."""
    if setup.means.fresh is None:
        raise ValueError(
            "fresh is None, but method is 'redrawn_last_block'; expected what makes a new network "
            "of the same architecture"
        )
    own, new = setup.model.network.state_dict(), setup.means.fresh().network.state_dict()
    for stage in stages(setup.model)[-1:]:
        for name in stage:
            own[name].copy_(new[name])
    return [Group(list(setup.model.parameters()))]


def _lora(setup: Setup) -> list[Group]:
    """Train the head and low-rank changes of all other weight matrices, which stay themselves."""
    adapters = add_adapters(
        setup.model.network,
        head=setup.model.head,
        rank=cast(int, setup.attack.lora_rank),
        alpha=cast(float, setup.attack.lora_alpha),
        rng=generator(setup.seed, "lora"),
    )
    return [Group([*setup.model.head.parameters(), *adapters])]


def _gradual_unfreezing(setup: Setup) -> list[Group]:
    """Train the head first, then one more stage, from the last to the first, per share of epochs.

    Source: Howard, Ruder, Universal Language Model Fine-tuning, 2018.
    """
    layers = _from_the_head(setup)
    return [
        Group(parameters, begins_at=Fraction(depth, len(layers)))
        for depth, parameters in enumerate(layers)
    ]


def _layer_wise_lr(setup: Setup) -> list[Group]:
    """Train all layers, each stage by a constant factor slower than the one after it.

    Source: Bao, Dong, Piao, Wei, BEiT, 2021, as is usual since for transformers.
    """
    decay = cast(float, setup.attack.layer_decay)
    return [
        Group(parameters, lr_factor=decay**depth)
        for depth, parameters in enumerate(_from_the_head(setup))
    ]


def _from_the_head(setup: Setup) -> list[list[nn.Parameter]]:
    """Parameters of the head, then of every stage from the last to the first."""
    named = dict(setup.model.network.named_parameters())
    by_stage = [[named[name] for name in stage if name in named] for stage in stages(setup.model)]
    return [list(setup.model.head.parameters()), *reversed(by_stage)]


AUDIT_METHODS: Final[dict[str, Callable[[Setup], list[Group]]]] = {
    **dict.fromkeys(METHODS, _simulated),
    "lora": _lora,
    "redrawn_last_block": _redrawn_last_block,
    "gradual_unfreezing": _gradual_unfreezing,
    "layer_wise_lr": _layer_wise_lr,
}
