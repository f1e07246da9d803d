"""The jobs that can be swept: how a trial of each runs, and what it is judged by.

Every judgement is on validation images. The less a score is, the better.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import torch

from protection.audit.families import AttackFamily
from protection.models import ModelConfig
from protection.training import TrainingConfig, start_training, train
from ray_jobs import domains, pretrain, protect_data, protect_model
from ray_jobs.audit_data import Appropriator
from ray_jobs.audit_model import AuditModel
from ray_jobs.cells import open_once, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.domains import DomainConfig
from ray_jobs.errors import UsageError
from ray_jobs.image_sets import ImageSetConfig, open_set
from ray_jobs.model_files import describe, new_model
from ray_jobs.quick_audit import Attacked, QuickAudit, transfer_gains
from ray_jobs.reporting import Row
from ray_jobs.runs import Run
from ray_jobs.sweep_records import constrained
from storage.commit import read_manifest
from storage.datasets import validation_split
from storage.location import parse_location

Metrics = dict[str, Any]


class Judge(NamedTuple):
    """What a trial is judged with; of each sweep a part of it is used."""

    quick_audit: QuickAudit
    appropriator: Appropriator | None
    max_original_drop: float
    shared: Run
    """Place of what trials need not measure again."""


class Rounds(NamedTuple):
    """How a job does while it runs."""

    step: str
    """Field of its rows that counts them."""
    number: Callable[[Any], int]
    """Of a recipe."""
    progress: Callable[[Row, float], float | None]
    """From a row and the greatest original drop to a forecast of the score; None: no telling."""


class SweptJob(NamedTuple):
    """A job, seen from a sweep."""

    recipe: type
    absolute: Callable[[Any], Any]
    run: Callable[[Any], str] | None
    """None where measuring is all that a trial does."""
    measure: Callable[[Any, str, Judge, Run], Metrics]
    """From recipe, location of what it made, judge and the trial's place."""
    score: Callable[[Metrics, float], float]
    """From metrics and the greatest original drop."""
    shown: tuple[str, ...]
    """Metrics that a person compares, each a share."""
    rounds: Rounds | None = None
    """None where rows say nothing of the score."""


def _measure_protected(
    job: protect_model.ProtectModel, location: str, judge: Judge, own: Run
) -> Metrics:
    known: Any = read_manifest(location).description["metrics"]
    drop = describe(location).task.drop(
        known["unprotected_validation_accuracy"], known["protected_validation_accuracy"]
    )
    audit = judge.quick_audit
    gains = _gains(location, job.restricted, audit, job.cluster, judge, own)
    return {"drop": drop, **gains}


def _gains(
    location: str,
    restricted: list[DomainConfig],
    audit: QuickAudit,
    cluster: ClusterConfig,
    judge: Judge,
    own: Run,
) -> Metrics:
    attacked = Attacked(
        location, describe(location), tuple(restricted), audit.epochs, cluster.uses_gpu
    )
    gains = transfer_gains(attacked, audit, cluster=cluster, own=own, shared=judge.shared)
    worst = next(iter(gains))
    return {"gain": gains[worst], "worst_attack": worst, "gains": gains}


def _protected_progress(row: Row, limit: float) -> float | None:
    reached = row.get("finetuned_accuracy")
    if reached is None:  # rolled back
        return None
    return constrained(reached, drop=row["original_drop"], limit=limit)


def _measure_trained(job: pretrain.Pretrain, location: str, judge: Judge, own: Run) -> Metrics:
    del job, judge, own
    known: Any = read_manifest(location).description["metrics"]
    return {"validation_accuracy": known["validation_accuracy"]}


def _measure_dataset(
    job: protect_data.ProtectData, location: str, judge: Judge, own: Run
) -> Metrics:
    appropriator = judge.appropriator
    assert appropriator is not None  # the sweep refuses it
    cell = Appropriation(location, job.dataset, appropriator.model, appropriator.training)
    own.logs.mkdir(parents=True, exist_ok=True)
    curves = run_cells(
        [cell],
        appropriate_once,
        job.cluster.uses_gpu,
        cluster=job.cluster,
        this_run=own,
        describe=lambda cell, _: cell.key(),
    )
    known: Any = read_manifest(location).description["metrics"]
    reached = max(row["accuracy"] for row in curves[cell])
    return {"appropriator_accuracy": reached, "psnr_median": known["psnr_median"]}


@dataclasses.dataclass(frozen=True)
class Appropriation:
    """A short training on protected images, measured on clean ones that were held out."""

    location: str
    clean: ImageSetConfig
    model: ModelConfig
    training: TrainingConfig

    def key(self) -> str:
        """Return a name for the finished result, safe in a path."""
        return f"appropriator-{hashlib.sha256(repr(self).encode()).hexdigest()[:12]}"

    def __hash__(self) -> int:
        """Of the name: recipes hold lists, which have no hash."""
        return hash(self.key())


def appropriate_once(is_gpu: bool, cell: Appropriation) -> list[Row]:
    """Train as the appropriator does; return the held-out clean accuracy after every epoch."""
    size = cell.model.image_size
    protected = open_once(open_set, ImageSetConfig(source=cell.location), image_size=size)
    clean = open_once(open_set, cell.clean, image_size=size)
    kept, held_out = validation_split(len(protected), share=0.1, seed=0)
    model = new_model(cell.model, num_classes=protected.num_classes, seed=cell.training.seed)
    model = model.to(torch.device("cuda" if is_gpu else "cpu"))
    epochs = train(
        start_training(model, cell.training),
        protected.subset(kept),
        clean.subset(held_out),
        config=cell.training,
    )
    return [{"epoch": epoch.epoch, "accuracy": epoch.validation_accuracy} for epoch in epochs]


def _measure_attack(job: AuditModel, location: str, judge: Judge, own: Run) -> Metrics:
    del location
    assert job.restricted is not None  # both made so by _absolute_audit
    assert job.adversary is not None
    audit = QuickAudit(adversary=job.adversary, epochs=job.epochs, seeds=job.seeds)
    return _gains(job.protected, job.restricted, audit, job.cluster, judge, own)


def _absolute_audit(job: AuditModel) -> AuditModel:
    protected = str(parse_location(job.protected))
    recipe: Any = read_manifest(protected).description.get("recipe", {})
    restricted = job.restricted or [DomainConfig(**d) for d in recipe.get("restricted", ())]
    if not restricted:
        raise UsageError(
            f"{protected} was not made by protect-model, so it names no domains to fine-tune to; "
            "expected restricted in the recipe of audit-model"
        )
    return dataclasses.replace(
        job,
        protected=protected,
        restricted=[domains.absolute(domain) for domain in restricted],
        # What is searched is the first family; a threat model by name has nothing to set.
        adversary=job.adversary or [AttackFamily()],
        threat_model=None,
    )


SWEPT_JOBS: Final[Mapping[str, SweptJob]] = {
    "protect-model": SweptJob(
        protect_model.ProtectModel,
        protect_model.absolute,
        protect_model.run,
        _measure_protected,
        lambda metrics, limit: constrained(metrics["gain"], drop=metrics["drop"], limit=limit),
        ("gain", "drop"),
        Rounds("round_index", lambda job: int(job.sophon.rounds), _protected_progress),
    ),
    "protect-data": SweptJob(
        protect_data.ProtectData,
        protect_data.absolute,
        protect_data.run,
        _measure_dataset,
        lambda metrics, _: float(metrics["appropriator_accuracy"]),
        ("appropriator_accuracy",),
    ),
    "pretrain": SweptJob(
        pretrain.Pretrain,
        pretrain.absolute,
        pretrain.run,
        _measure_trained,
        lambda metrics, _: -float(metrics["validation_accuracy"]),
        ("validation_accuracy",),
        Rounds(
            "epoch",
            lambda job: int(job.training.epochs),
            lambda row, _: -float(row["validation_accuracy"]),
        ),
    ),
    "audit-model": SweptJob(
        AuditModel,
        _absolute_audit,
        None,
        _measure_attack,
        lambda metrics, _: -float(metrics["gain"]),  # whoever looks for an attack wants it to gain
        ("gain",),
    ),
}
