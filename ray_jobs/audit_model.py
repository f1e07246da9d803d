"""`ringfence audit-model`: what fine-tuning achieves from three starts, worst case first.

The starts are the protected model, the unprotected one and a from-scratch one. Every fine-tuning is
one Ray task. A finished one is kept in the run's place, so an interrupted audit repeats none.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import ray
import ray.exceptions
import torch

from protection.audit.fine_tuning import fine_tune
from protection.audit.verdict import STARTS
from protection.evaluation import accuracy
from protection.models import Classifier
from protection.sophon.adversary import Strategy, StrategyFamily, check_fits
from ray_jobs import domains
from ray_jobs.audit_report import build_report, to_markdown
from ray_jobs.cluster import ClusterConfig, connect
from ray_jobs.domains import Domain, DomainConfig, open_domain
from ray_jobs.errors import JobError, UsageError
from ray_jobs.model_files import ModelDescription, describe, model_from, new_model
from ray_jobs.reporting import METRICS_FILE, Row, append_rows, duration
from ray_jobs.runs import Run, begin, find_run, provenance
from storage.blobs import open_blobs
from storage.commit import commit, read_manifest
from storage.location import parse_location

logger = logging.getLogger(__name__)

AUDIT_KIND: Final = "model-audit"


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
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}; expected different numbers, at least one")
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
    results = _run_cells(job, resolved, this_run)
    original = _original_accuracies(job, resolved)
    report = build_report(
        _accuracies(resolved, results),
        original=original,
        epochs=job.epochs,
        seeds=job.seeds,
        curves={cell.key(): curve for cell, curve in results.items()},
    )
    commit(
        str(this_run.output),
        {
            "report.json": json.dumps(report, indent=2).encode(),
            "report.md": to_markdown(report).encode(),
        },
        kind=AUDIT_KIND,
        description={
            **provenance(this_run),
            "metrics": report["headline"],
            "parents": {"protected": resolved.protected, "unprotected": resolved.unprotected},
        },
    )
    logger.info("\n%s", to_markdown(report))
    return str(this_run.output)


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


def _run_cells(job: AuditModel, resolved: _Resolved, this_run: Run) -> dict[Cell, list[Row]]:
    """Run what is not finished, as many at a time as there are workers; return all curves."""
    kept = open_blobs(this_run.state)
    cells = list(dict.fromkeys(_cells(job, resolved)))
    present = set(kept.list("cells/"))
    results = {
        cell: json.loads(kept.get(name))
        for cell in cells
        if (name := f"cells/{cell.key()}.json") in present
    }
    waiting = [cell for cell in cells if cell not in results]
    task = ray.remote(_fine_tune_cell).options(
        num_cpus=job.cluster.cpus_per_worker,
        num_gpus=job.cluster.gpus_per_worker,
        max_retries=job.cluster.max_failures,
    )
    running: dict[Any, Cell] = {}
    started, num_before = time.monotonic(), len(results)
    while waiting or running:
        while waiting and len(running) < job.cluster.workers:
            cell = waiting.pop(0)
            running[task.remote(resolved, cell)] = cell
        (done,), _ = ray.wait(list(running))
        cell = running.pop(done)
        try:
            results[cell] = ray.get(done)
        except ray.exceptions.RayError as error:
            message = [line for line in str(error).splitlines() if line.strip()][-1]
            raise JobError(
                f"fine-tuning {cell.key()} failed: {message}; finished ones are kept, the same "
                "command goes on"
            ) from error
        kept.put(f"cells/{cell.key()}.json", json.dumps(results[cell]).encode())
        num_new = len(results) - num_before
        eta = (time.monotonic() - started) / num_new * (len(cells) - len(results))
        append_rows(
            this_run.logs / METRICS_FILE,
            [{"cell": cell.key(), "start": cell.start, "curve": results[cell]}],
        )
        logger.info(
            "audit %d/%d  %s  %s  seed %d  finetuned %.3f  eta %s",
            len(results),
            len(cells),
            cell.strategy,
            cell.start,
            cell.seed,
            results[cell][-1]["test_accuracy"],
            duration(eta),
        )
    return {cell: results[cell] for cell in cells}


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
    recipe = json.dumps(dataclasses.asdict(config))
    return _open_once(recipe, resolved.description.config.image_size)


# A task's process lives on for the next task: a domain's images are decoded once in it.
@functools.lru_cache(maxsize=4)
def _open_once(recipe: str, image_size: int) -> Domain:
    return open_domain(DomainConfig(**json.loads(recipe)), image_size=image_size)


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


def _accuracies(
    resolved: _Resolved, results: dict[Cell, list[Row]]
) -> dict[str, dict[str, list[float]]]:
    """Accuracy after the last epoch by strategy and domain, by start, in the order of seeds."""
    several = len(resolved.restricted) > 1
    table: dict[str, dict[str, list[float]]] = {}
    for cell, curve in results.items():
        prefix = f"domain {cell.domain_index}: " if several else ""
        starts = table.setdefault(f"{prefix}{cell.strategy}", {start: [] for start in STARTS})
        starts[cell.start].append(curve[-1]["test_accuracy"])
    return table
