"""`ringfence audit-model`: what fine-tuning achieves from three starts, worst case first.

The starts are the protected model, the unprotected one and a from-scratch one. Every fine-tuning is
one cell.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import ray
import torch

from protection.audit.fine_tuning import fine_tune
from protection.audit.scores import STARTS
from protection.evaluation import accuracy
from protection.models import Classifier
from protection.sophon.adversary import METHODS, OPTIMIZERS, Strategy, StrategyFamily, check_fits
from ray_jobs import domains
from ray_jobs.audit_report import RESTRICTED, AttackResult, build_report
from ray_jobs.cells import open_once, require_seeds, run_cells
from ray_jobs.cluster import ClusterConfig, connect
from ray_jobs.domains import Domain, DomainConfig, open_domain
from ray_jobs.errors import UsageError
from ray_jobs.model_files import ModelDescription, describe, model_from, new_model
from ray_jobs.reporting import Row
from ray_jobs.reports import commit_report
from ray_jobs.reproduction import parent
from ray_jobs.runs import begin, find_run
from storage.commit import read_manifest
from storage.location import parse_location


@dataclass(frozen=True, kw_only=True)
class AuditModel:
    """Measure what fine-tuning achieves from a protected, an unprotected and a new model."""

    protected: str
    """Location of the protected model, as `protect-model` printed it."""
    output: str
    """Location to commit the report to; must not exist yet."""
    unprotected: str | None = None
    """The model that was protected; null: the one that the protected model's manifest names."""
    original: DomainConfig | None = None
    """Domain that must have kept its accuracy; null: the one it was protected with."""
    restricted: list[DomainConfig] | None = None
    """Domains to fine-tune to; null: those it was protected against."""
    adversary: list[StrategyFamily] = field(default_factory=lambda: [StrategyFamily()])
    """The threat model: every combination of every family is tried."""
    epochs: int = 20
    """Passes over the restricted training images."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Repetitions of every fine-tuning: order of images, redrawn heads, and the from-scratch
    weights."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Reject an audit that would measure nothing."""
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; expected at least 1")
        require_seeds(self.seeds)
        if not self.adversary:
            raise ValueError("adversary is empty, so nothing is tried; expected a family")


class Cell(NamedTuple):
    """One fine-tuning to run."""

    domain_index: int
    strategy: Strategy
    start: str
    seed: int

    def key(self) -> str:
        """Return a name for the finished result, safe in a path."""
        strategy = str(self.strategy).replace(" ", "-")
        return f"domain{self.domain_index}-{strategy}-{self.start}-seed{self.seed}"


class _Resolved(NamedTuple):
    """The recipe with nothing left to look up; travels to the tasks."""

    protected: str
    unprotected: str
    description: ModelDescription
    original: DomainConfig
    restricted: tuple[DomainConfig, ...]
    epochs: int
    is_gpu: bool


def run(job: AuditModel) -> str:
    """Run every cell, commit the report, and return its location.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: a fine-tuning failed.
    """
    resolved = _resolve(job)
    _check(job, resolved)
    this_run = find_run(job, verb="audit-model")
    connect(job.cluster)
    begin(this_run)
    results = run_cells(
        _cells(job, resolved),
        _fine_tune_cell,
        resolved,
        cluster=job.cluster,
        this_run=this_run,
        describe=_progress,
    )
    original = _original_accuracies(job, resolved)
    report = build_report(
        _attack_results(job, resolved, results),
        original=original,
        epochs=job.epochs,
        seeds=job.seeds,
        not_tested=_not_tested(job),
    )
    return commit_report(
        this_run,
        report,
        parents={
            **parent("protected", resolved.protected),
            **parent("unprotected", resolved.unprotected),
            **_digests(resolved),
        },
    )


def _resolve(job: AuditModel) -> _Resolved:
    protected = str(parse_location(job.protected))
    manifest = read_manifest(protected)
    recipe: Any = manifest.description.get("recipe", {})
    if recipe.get("command") != "protect-model" and None in (
        job.unprotected,
        job.original,
        job.restricted,
    ):
        raise UsageError(
            f"{protected} was not made by protect-model, so it names no unprotected model and no "
            "domains; expected unprotected, original and restricted in the recipe"
        )
    unprotected = job.unprotected or recipe["model"]
    original = job.original or DomainConfig(**recipe["original"])
    restricted = job.restricted or [DomainConfig(**domain) for domain in recipe["restricted"]]
    return _Resolved(
        protected,
        str(parse_location(unprotected)),
        describe(protected),
        domains.absolute(original),
        tuple(domains.absolute(domain) for domain in restricted),
        job.epochs,
        job.cluster.uses_gpu,
    )


def _check(job: AuditModel, resolved: _Resolved) -> None:
    for domain in resolved.restricted:
        opened = open_domain(domain, image_size=resolved.description.config.image_size)
        check_fits(
            job.adversary,
            model_classes=resolved.description.num_classes,
            domain_classes=opened.train.num_classes,
        )
    for weights in (resolved.protected, resolved.unprotected):
        model_from(resolved.description, weights=weights)


def _cells(job: AuditModel, resolved: _Resolved) -> Iterator[Cell]:
    for seed in job.seeds:  # seeds outermost: an interrupted audit has whole cells first
        for domain_index in range(len(resolved.restricted)):
            for family in job.adversary:
                for strategy in family.strategies():
                    for start in STARTS:
                        yield Cell(domain_index, strategy, start, seed)


def _progress(cell: Cell, curve: list[Row]) -> str:
    accuracy_text = f"{curve[-1]['test_accuracy']:.3f}"
    return f"{cell.strategy}  {cell.start}  seed {cell.seed}  finetuned {accuracy_text}"


def _fine_tune_cell(resolved: _Resolved, cell: Cell) -> list[Row]:
    device = torch.device("cuda" if resolved.is_gpu else "cpu")
    domain = _domain(resolved.restricted[cell.domain_index], resolved)
    model = _start_model(resolved, cell).to(device)
    epochs = fine_tune(
        model, cell.strategy, domain.train, domain.test, epochs=resolved.epochs, seed=cell.seed
    )
    # A diverged loss is not a number that JSON has.
    return [
        {**metrics._asdict(), "loss": metrics.loss if abs(metrics.loss) < float("inf") else None}
        for metrics in epochs
    ]


def _start_model(resolved: _Resolved, cell: Cell) -> Classifier:
    if cell.start == "scratch":
        description = resolved.description
        config = dataclasses.replace(description.config, pretrained=False)
        return new_model(config, num_classes=description.num_classes, seed=cell.seed)
    weights = resolved.protected if cell.start == "protected" else resolved.unprotected
    return model_from(resolved.description, weights=weights)


def _domain(config: DomainConfig, resolved: _Resolved) -> Domain:
    return open_once(open_domain, config, image_size=resolved.description.config.image_size)


def _original_accuracies(job: AuditModel, resolved: _Resolved) -> dict[str, float]:
    def measure(resolved: _Resolved) -> dict[str, float]:
        device = torch.device("cuda" if resolved.is_gpu else "cpu")
        test = _domain(resolved.original, resolved).test
        starts = {"protected": resolved.protected, "unprotected": resolved.unprotected}
        return {
            name: accuracy(
                model_from(resolved.description, weights=weights).to(device), test, device=device
            )
            for name, weights in starts.items()
        }

    task = ray.remote(measure).options(
        num_cpus=job.cluster.cpus_per_worker, num_gpus=job.cluster.gpus_per_worker
    )
    result: dict[str, float] = ray.get(task.remote(resolved))
    return result


def _attack_results(
    job: AuditModel, resolved: _Resolved, results: Mapping[Cell, list[Row]]
) -> list[AttackResult]:
    return [
        AttackResult(
            attack=str(strategy),
            role=RESTRICTED,
            domain=_domain_name(domain),
            facts=dataclasses.asdict(strategy),
            curves={
                start: [results[Cell(index, strategy, start, seed)] for seed in job.seeds]
                for start in STARTS
            },
        )
        for index, domain in enumerate(resolved.restricted)
        for family in job.adversary
        for strategy in family.strategies()
    ]


def _domain_name(config: DomainConfig) -> str:
    """What it is read from, without most of the path, and which classes of it."""
    classes = "" if config.classes is None else f" ({', '.join(map(str, config.classes))})"
    return f"{'/'.join(config.train.split('/')[-2:])}{classes}"


def _not_tested(job: AuditModel) -> list[str]:
    """Methods and optimizers that Ringfence has and no family of the adversary names."""
    methods = {method for family in job.adversary for method in family.methods}
    optimizers = {optimizer for family in job.adversary for optimizer in family.optimizers}
    return [
        *(f"method {name}" for name in METHODS if name not in methods),
        *(f"optimizer {name}" for name in OPTIMIZERS if name not in optimizers),
    ]


def _digests(resolved: _Resolved) -> dict[str, Any]:
    """SHA-256 of the images that were trained on and tested on."""
    return {
        "original": domains.digests(_domain(resolved.original, resolved)),
        "restricted": [domains.digests(_domain(each, resolved)) for each in resolved.restricted],
    }
