"""A few short attacks, measured on validation images: what trials of a sweep are compared by.

It is `audit-model` in small, except that no test image is read: choosing by test images would
flatter what is chosen.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from protection.audit.fine_tuning import fine_tune
from protection.sophon.adversary import Strategy, StrategyFamily
from ray_jobs.cells import open_once, require_seeds, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.domains import DomainConfig, open_domain
from ray_jobs.model_files import ModelDescription, model_from, new_model
from ray_jobs.reporting import Row
from ray_jobs.runs import Run


def _usual_attacks() -> list[StrategyFamily]:
    return [
        StrategyFamily(optimizers=["momentum"], finetune_lrs=[0.01], batch_sizes=[64]),
        StrategyFamily(optimizers=["adam"], finetune_lrs=[0.001], batch_sizes=[64]),
        StrategyFamily(
            methods=["redrawn_head"], optimizers=["momentum"], finetune_lrs=[0.01], batch_sizes=[64]
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class QuickAudit:
    """The attacks that a trial is judged by."""

    adversary: list[StrategyFamily] = field(default_factory=_usual_attacks)
    """Every combination of every family is tried; the one that gains most counts."""
    epochs: int = 5
    """Passes over the restricted training images."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Repetitions of every attack."""

    def __post_init__(self) -> None:
        """Reject an audit that would measure nothing."""
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; expected at least 1")
        require_seeds(self.seeds)
        if not self.adversary:
            raise ValueError("adversary is empty, so nothing is tried; expected a family")

    def strategies(self) -> list[Strategy]:
        """All of them, each once."""
        found = (strategy for family in self.adversary for strategy in family.strategies())
        return list(dict.fromkeys(found))


class Attacked(NamedTuple):
    """What is attacked, and how long; travels to the tasks."""

    model: str
    """Location of its weights."""
    description: ModelDescription
    restricted: tuple[DomainConfig, ...]
    epochs: int
    is_gpu: bool


class Attack(NamedTuple):
    """One fine-tuning; ``scratch`` is a word that two networks from scratch do not share."""

    domain_index: int
    strategy: Strategy
    seed: int
    scratch: str | None = None

    def key(self) -> str:
        """Return a name for the finished result, safe in a path."""
        strategy = str(self.strategy).replace(" ", "-")
        start = f"scratch-{self.scratch}" if self.scratch else "given"
        return f"domain{self.domain_index}-{strategy}-{start}-seed{self.seed}"


def transfer_gains(
    attacked: Attacked, audit: QuickAudit, *, cluster: ClusterConfig, own: Run, shared: Run
) -> dict[str, float]:
    """Validation accuracy that each attack gains from the given weights over weights from scratch.

    Args:
        attacked: the model.
        audit: the attacks; the mean over its seeds counts.
        cluster: connected already.
        own: place of finished attacks on this model.
        shared: place of finished attacks from scratch, which need not be run for every model.

    Returns:
        The gain, in [-1, 1], by attack, the largest first.

    Raises:
        JobError: a fine-tuning failed.
    """
    given = list(_attacks(attacked, audit))
    word = _fingerprint(attacked)
    scratch = [attack._replace(scratch=word) for attack in given]
    curves: dict[Attack, list[Row]] = {}
    for attacks, place in ((scratch, shared), (given, own)):
        place.logs.mkdir(parents=True, exist_ok=True)
        curves |= run_cells(
            attacks,
            attack_once,
            attacked,
            cluster=cluster,
            this_run=place,
            describe=lambda attack, _: attack.key(),
        )
    gains: dict[str, list[float]] = {}
    for attack, base in zip(given, scratch, strict=True):
        name = str(attack.strategy)
        if len(attacked.restricted) > 1:
            name = f"domain {attack.domain_index}: {name}"
        gains.setdefault(name, []).append(_reached(curves[attack]) - _reached(curves[base]))
    means = {name: sum(values) / len(values) for name, values in gains.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _attacks(attacked: Attacked, audit: QuickAudit) -> Iterator[Attack]:
    for seed in audit.seeds:
        for domain_index in range(len(attacked.restricted)):
            for strategy in audit.strategies():
                yield Attack(domain_index, strategy, seed)


def _fingerprint(attacked: Attacked) -> str:
    """Of all that a fine-tuning from scratch depends on and its key does not say."""
    description, domains = attacked.description, attacked.restricted
    parts = [
        dataclasses.asdict(description.config),
        description.num_classes,
        [dataclasses.asdict(domain) for domain in domains],
        attacked.epochs,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def _reached(curve: list[Row]) -> float:
    accuracy: float = curve[-1]["accuracy"]
    return accuracy


def attack_once(attacked: Attacked, attack: Attack) -> list[Row]:
    """Fine-tune as ``attack`` says; return the validation accuracy after every epoch."""
    description = attacked.description
    domain = open_once(
        open_domain,
        attacked.restricted[attack.domain_index],
        image_size=description.config.image_size,
    )
    if attack.scratch:
        config = dataclasses.replace(description.config, pretrained=False)
        model = new_model(config, num_classes=description.num_classes, seed=attack.seed)
    else:
        model = model_from(description, weights=attacked.model)
    epochs = fine_tune(
        model.to(torch.device("cuda" if attacked.is_gpu else "cpu")),
        attack.strategy,
        domain.train,
        domain.validation,
        epochs=attacked.epochs,
        seed=attack.seed,
    )
    return [{"epoch": epoch.epoch, "accuracy": epoch.test_accuracy} for epoch in epochs]
