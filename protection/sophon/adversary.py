"""The adversary: the ways of fine-tuning that episodes simulate and audits try.

A *strategy* is one way; a *family* declares many, as lists of values whose product it is.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import nn

from protection.models import Classifier, redrawn_head, replace_head

OPTIMIZERS: Final[dict[str, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda params, **kw: torch.optim.SGD(params, momentum=0.9, **kw),
    "nesterov": lambda params, **kw: torch.optim.SGD(params, momentum=0.9, nesterov=True, **kw),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rmsprop": torch.optim.RMSprop,
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Which layers fine-tuning trains and whether it begins with a new head."""

    trains_all_layers: bool
    redraws_head: bool


METHODS: Final[dict[str, Method]] = {
    "all_layers": Method(trains_all_layers=True, redraws_head=False),
    "head_only": Method(trains_all_layers=False, redraws_head=False),
    "redrawn_head": Method(trains_all_layers=True, redraws_head=True),
    "redrawn_head_only": Method(trains_all_layers=False, redraws_head=True),
}


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to fine-tune; everything but the number of steps and the data."""

    method: str
    optimizer: str
    finetune_lr: float
    batch_size: int
    weight_decay: float

    def __str__(self) -> str:
        """Return a short, unique name for tables."""
        decay = f" wd {self.weight_decay:g}" if self.weight_decay else ""
        return f"{self.method} {self.optimizer} {self.finetune_lr:g} batch {self.batch_size}{decay}"


@dataclass(frozen=True, kw_only=True)
class StrategyFamily:
    """All combinations of the listed values; an episode draws one, an audit tries every one."""

    methods: list[str] = field(default_factory=lambda: ["all_layers"])
    """Among all_layers, head_only, redrawn_head (then all layers), redrawn_head_only."""
    optimizers: list[str] = field(default_factory=lambda: ["sgd"])
    """Among sgd, momentum, nesterov, adam, adamw, adagrad, adadelta, rmsprop."""
    finetune_lrs: list[float] = field(default_factory=lambda: [1e-4])
    """Learning rates (released code: SGD 1e-4)."""
    batch_sizes: list[int] = field(default_factory=lambda: [130])
    """Images per fine-tuning step (released code: 130 support images)."""
    weight_decays: list[float] = field(default_factory=lambda: [0.0])
    """Weight decays, as the optimizer understands them."""

    def __post_init__(self) -> None:
        """Reject names and values that no optimizer takes."""
        for name, values, known in (
            ("methods", self.methods, METHODS),
            ("optimizers", self.optimizers, OPTIMIZERS),
        ):
            for value in values:
                if value not in known:
                    raise ValueError(
                        f"{name} has {value!r}, which names none; expected {', '.join(known)}"
                    )
        for name, numbers, least in (
            ("finetune_lrs", self.finetune_lrs, "positive"),
            ("batch_sizes", self.batch_sizes, "positive"),
            ("weight_decays", self.weight_decays, "non-negative"),
        ):
            for number in numbers:
                if number < 0 or (number == 0 and least == "positive"):
                    raise ValueError(f"{name} has {number}; expected {least} numbers")
        for name in self.__dataclass_fields__:
            if not getattr(self, name):
                raise ValueError(f"{name} is empty, so there is no strategy; expected at least one")

    def strategies(self) -> list[Strategy]:
        """Every combination, in the order of the lists."""
        return [
            Strategy(
                method=method,
                optimizer=optimizer,
                finetune_lr=finetune_lr,
                batch_size=batch_size,
                weight_decay=weight_decay,
            )
            for method, optimizer, finetune_lr, batch_size, weight_decay in itertools.product(
                self.methods,
                self.optimizers,
                self.finetune_lrs,
                self.batch_sizes,
                self.weight_decays,
            )
        ]


def check_fits(
    families: Iterable[StrategyFamily], *, model_classes: int, domain_classes: int
) -> None:
    """Raise ValueError where a family keeps a head that has too few outputs for the domain."""
    if domain_classes <= model_classes:
        return
    for method in {method for family in families for method in family.methods}:
        if not METHODS[method].redraws_head:
            raise ValueError(
                f"methods has {method!r}, which keeps the model's head of {model_classes} classes, "
                f"but the restricted domain has {domain_classes}; expected redrawn_head or "
                "redrawn_head_only"
            )


def draw(families: list[StrategyFamily], *, rng: torch.Generator) -> Strategy:
    """One strategy, every combination of every family equally likely."""
    strategies = [strategy for family in families for strategy in family.strategies()]
    return strategies[int(torch.randint(len(strategies), (1,), generator=rng))]


def begin_fine_tuning(
    model: Classifier, strategy: Strategy, *, num_classes: int, rng: torch.Generator
) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    """Redraw the head if the strategy does; return what it trains, and the optimizer for it.

    The model is in train mode afterwards. Frozen layers keep ``requires_grad``: SOPHON's query
    gradient needs them.
    """
    method = METHODS[strategy.method]
    if method.redraws_head:
        replace_head(model, redrawn_head(model, num_classes=num_classes, rng=rng))
    module: nn.Module = model if method.trains_all_layers else model.head
    trained = list(module.parameters())
    optimizer = OPTIMIZERS[strategy.optimizer](
        trained, lr=strategy.finetune_lr, weight_decay=strategy.weight_decay
    )
    model.train()
    return trained, optimizer
