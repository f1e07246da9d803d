"""The adversary: the ways of fine-tuning that episodes simulate and audits try.

A *strategy* is one way; a *family* declares many, as lists of values whose product it is.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Final

import torch

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

    trains: str
    """`all`, or besides the head: `nothing`, `last_stage`, `norms_and_biases` or `adapters`, which
    are low-rank changes of all weight matrices."""
    redraws_head: bool

    @property
    def needs_head(self) -> bool:
        """Whether it is a method for models that have a head."""
        return self.redraws_head or self.trains != "all"


METHODS: Final[dict[str, Method]] = {
    "all_layers": Method(trains="all", redraws_head=False),
    "head_only": Method(trains="nothing", redraws_head=False),
    "redrawn_head": Method(trains="all", redraws_head=True),
    "redrawn_head_only": Method(trains="nothing", redraws_head=True),
    "last_stage": Method(trains="last_stage", redraws_head=True),
    "norms_and_biases": Method(trains="norms_and_biases", redraws_head=True),
    "lora": Method(trains="adapters", redraws_head=True),
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
        decay = f" wd {number(self.weight_decay)}" if self.weight_decay else ""
        rate = number(self.finetune_lr)
        return f"{self.method} {self.optimizer} {rate} batch {self.batch_size}{decay}"


def number(value: float) -> str:
    """Write ``value`` as briefly as no other number is written."""
    brief = f"{value:g}"
    return brief if float(brief) == value else repr(value)


@dataclass(frozen=True, kw_only=True)
class StrategyFamily:
    """All combinations of the listed values; an episode draws one, an audit tries every one."""

    methods: list[str] = field(default_factory=lambda: ["all_layers"])
    """Among all_layers, head_only, redrawn_head (then all layers), redrawn_head_only, and with a
    new head as well: last_stage, norms_and_biases, lora (rank 8, alpha 16)."""
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
        require_some(self)
        require_known("methods", self.methods, METHODS)
        require_known("optimizers", self.optimizers, OPTIMIZERS)
        require_numbers("finetune_lrs", self.finetune_lrs, "positive numbers", lambda lr: lr > 0)
        require_numbers("batch_sizes", self.batch_sizes, "positive numbers", lambda size: size > 0)
        require_numbers(
            "weight_decays", self.weight_decays, "non-negative numbers", lambda decay: decay >= 0
        )

    def strategies(self) -> list[Strategy]:
        """Every combination, in the order of the lists."""
        return [Strategy(**values) for values in combinations(self, Strategy)]


def combinations(family: Any, of: type) -> list[dict[str, Any]]:
    """Every combination of the lists of ``family``, as keyword arguments of ``of``.

    The fields of ``family`` are lists of values for the fields of ``of``, in the same order.
    """
    names = [each.name for each in fields(of)]
    lists = [getattr(family, each.name) for each in fields(family)]
    return [dict(zip(names, values, strict=True)) for values in itertools.product(*lists)]


def require_some(family: Any) -> None:
    """Raise ValueError where a list of ``family`` is empty."""
    for each in fields(family):
        if not getattr(family, each.name):
            raise ValueError(
                f"{each.name} is empty, so there is no strategy; expected at least one"
            )


def require_known(name: str, values: Iterable[str], known: Collection[str]) -> None:
    """Raise ValueError where one of ``values`` is not ``known``."""
    for value in values:
        if value not in known:
            raise ValueError(f"{name} has {value!r}, which names none; expected {', '.join(known)}")


def require_numbers(
    name: str, values: Iterable[float], expected: str, is_one: Callable[[float], bool]
) -> None:
    """Raise ValueError where one of ``values`` is not finite, or not what is ``expected``."""
    for value in values:
        if not (math.isfinite(value) and is_one(value)):
            raise ValueError(f"{name} has {value}; expected {expected}")


def check_fits(methods: Iterable[str], *, model_classes: int, domain_classes: int) -> None:
    """Raise ValueError where a method keeps a head that has too few outputs for the domain."""
    for method in methods:
        if not fits(method, model_classes=model_classes, domain_classes=domain_classes):
            raise ValueError(
                f"methods has {method!r}, which keeps the model's head of {model_classes} classes, "
                f"but the domain has {domain_classes}; expected redrawn_head or another method "
                "that draws a new one"
            )


def fits(method: str, *, model_classes: int, domain_classes: int) -> bool:
    """Whether the head that ``method`` trains has an output for every class of the domain."""
    return redraws_head(method) or domain_classes <= model_classes


def redraws_head(method: str) -> bool:
    """Whether ``method`` begins with a new head; every one does that is not among `METHODS`."""
    return method not in METHODS or METHODS[method].redraws_head


def draw(families: list[StrategyFamily], *, rng: torch.Generator) -> Strategy:
    """One strategy, every combination of every family equally likely."""
    strategies = [strategy for family in families for strategy in family.strategies()]
    return strategies[int(torch.randint(len(strategies), (1,), generator=rng))]
