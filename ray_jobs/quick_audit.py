"""A few short attacks, measured on validation images: what trials of a sweep are compared by.

It is `audit-model` in small, except that no test image is read: choosing by test images would
flatter what is chosen.
"""

import dataclasses
import functools
import hashlib
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from protection.audit.attacks import IMAGES_FOR, Attack, Means, impossible_field
from protection.audit.families import AttackFamily
from protection.audit.fine_tuning import fine_tune
from protection.seeds import derive_seed
from ray_jobs.cells import open_once, require_seeds, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.domains import DomainConfig, open_domain
from ray_jobs.model_files import ModelDescription, from_scratch, model_from
from ray_jobs.reporting import Row
from ray_jobs.runs import Run


def _usual_attacks() -> list[AttackFamily]:
    return [
        AttackFamily(optimizers=["momentum"], finetune_lrs=[0.01], batch_sizes=[64]),
        AttackFamily(optimizers=["adam"], finetune_lrs=[0.001], batch_sizes=[64]),
        AttackFamily(
            methods=["redrawn_head"], optimizers=["momentum"], finetune_lrs=[0.01], batch_sizes=[64]
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class QuickAudit:
    """The attacks that a trial is judged by."""

    adversary: list[AttackFamily] = field(default_factory=_usual_attacks)
    """Every combination of every family is tried; the one that gains most counts. Those that a
    denoiser cannot undergo are left out for one."""
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
        for attack in self.attacks():
            if attack.preparation in IMAGES_FOR:
                raise ValueError(
                    f"preparations has {attack.preparation!r}, which needs images of another "
                    "domain; expected none, prune or int8 in an audit that is to be quick"
                )

    def attacks(self) -> list[Attack]:
        """All of them, each once."""
        found = (attack for family in self.adversary for attack in family.attacks())
        return list(dict.fromkeys(found))


class Attacked(NamedTuple):
    """What is attacked, and how long; travels to the tasks."""

    model: str
    """Location of its weights."""
    description: ModelDescription
    restricted: tuple[DomainConfig, ...]
    epochs: int
    is_gpu: bool


class QuickCell(NamedTuple):
    """One fine-tuning; ``scratch`` is a word that two networks from scratch do not share."""

    domain_index: int
    attack: Attack
    seed: int
    scratch: str | None = None

    def key(self) -> str:
        """Return a name for the finished result, safe in a path."""
        attack = str(self.attack).replace(" ", "-")
        start = f"scratch-{self.scratch}" if self.scratch else "given"
        return f"domain{self.domain_index}-{attack}-{start}-seed{self.seed}"


def transfer_gains(
    attacked: Attacked, audit: QuickAudit, *, cluster: ClusterConfig, own: Run, shared: Run
) -> dict[str, float]:
    """Validation accuracy that each attack gains from the given weights over weights from scratch.

    The mean over the epochs, that is, the area between the two curves. At the last epoch alone many
    attacks are where any weights would have got them, and no trial differs from any other.

    Args:
        attacked: the model.
        audit: the attacks; the mean over its seeds counts.
        cluster: connected already.
        own: place of finished attacks on this model.
        shared: place of finished attacks from scratch, which need not be run for every model.

    Returns:
        The gain, in [-1, 1], by attack, the largest first.

    Raises:
        ValueError: the model can undergo none of the attacks.
        JobError: a fine-tuning failed.
    """
    if not (given := list(_cells(attacked, audit))):
        raise ValueError(
            f"quick_audit.adversary has {len(audit.attacks())} attacks, and a model for "
            f"{attacked.description.task.name} can undergo none of them; expected one of methods "
            "all_layers or lora"
        )
    word = _fingerprint(attacked)
    scratch = [cell._replace(scratch=word) for cell in given]
    curves: dict[QuickCell, list[Row]] = {}
    for cells, place in ((scratch, shared), (given, own)):
        place.logs.mkdir(parents=True, exist_ok=True)
        curves |= run_cells(
            cells,
            fine_tune_quickly,
            attacked,
            cluster=cluster,
            this_run=place,
            describe=lambda cell, _: cell.key(),
        )
    gains: dict[str, list[float]] = {}
    for cell, base in zip(given, scratch, strict=True):
        name = str(cell.attack)
        if len(attacked.restricted) > 1:
            name = f"domain {cell.domain_index}: {name}"
        gains.setdefault(name, []).append(_mean(curves[cell]) - _mean(curves[base]))
    means = {name: sum(values) / len(values) for name, values in gains.items()}
    return dict(sorted(means.items(), key=lambda item: -item[1]))


def _cells(attacked: Attacked, audit: QuickAudit) -> Iterator[QuickCell]:
    for seed in audit.seeds:
        for domain_index in range(len(attacked.restricted)):
            for attack in audit.attacks():
                if not impossible_field(attack, attacked.description.task):
                    yield QuickCell(domain_index, attack, seed)


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


def _mean(curve: list[Row]) -> float:
    return statistics.fmean(row["accuracy"] for row in curve)


def fine_tune_quickly(attacked: Attacked, cell: QuickCell) -> list[Row]:
    """Fine-tune as ``cell`` says; return the validation accuracy after every epoch."""
    description = attacked.description
    domain = open_once(
        open_domain,
        attacked.restricted[cell.domain_index],
        image_size=description.config.image_size,
    )
    if cell.scratch:
        model = from_scratch(description, seed=cell.seed)
    else:
        model = model_from(description, weights=attacked.model)
    seed = derive_seed(cell.seed, "fresh")  # redrawing the from-scratch start must change it
    means = Means(
        fresh=functools.partial(from_scratch, description, seed=seed),
        is_scratch=cell.scratch is not None,
    )
    epochs = fine_tune(
        model.to(torch.device("cuda" if attacked.is_gpu else "cpu")),
        cell.attack,
        domain.train,
        domain.validation,
        epochs=attacked.epochs,
        seed=cell.seed,
        means=means,
    )
    return [{"epoch": epoch.epoch, "accuracy": epoch.test_accuracy} for epoch in epochs]
