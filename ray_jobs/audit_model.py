"""`ringfence audit-model`: what fine-tuning achieves from three starts, worst case first.

The starts are the protected model, the unprotected one and a from-scratch one. Every fine-tuning is
one cell.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch

from protection.audit.attacks import IMAGES_FOR, Attack, impossible_field, require_possible
from protection.audit.families import AttackFamily
from protection.audit.threat_models import attacks_of, not_tested
from protection.denoisers import Blueprint
from protection.sophon.adversary import check_fits, fits
from protection.tasks import Task
from ray_jobs import domains
from ray_jobs.attack_cells import (
    Audited,
    Cell,
    Target,
    cells,
    fine_tune_cell,
    measure_denoisers,
    measure_original,
    opened,
    show_progress,
    to_results,
)
from ray_jobs.audit_recipe import AuditModel
from ray_jobs.audited_models import resolve
from ray_jobs.cells import as_task, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import connect
from ray_jobs.denoiser_cells import open_features
from ray_jobs.errors import UsageError
from ray_jobs.lineage import parent
from ray_jobs.model_files import model_from
from ray_jobs.reporting import Row
from ray_jobs.reports.denoiser_report import to_denoiser_report
from ray_jobs.reports.model_report import build_report
from ray_jobs.reports.stored import commit_report
from ray_jobs.runs import begin, find_run

__all__ = ["AuditModel", "run"]


def run(job: AuditModel) -> str:
    """Run every cell, commit the report, and return its location.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: a fine-tuning failed.
    """
    audited = resolve(job)
    plan = _plan(job, audited)
    _check(audited, plan)
    parents = {**job.parents(), **parent("unprotected", audited.unprotected)}
    this_run = find_run(job, verb="audit-model", parents=parents)
    connect(job.cluster)
    begin(this_run)
    curves = run_cells(
        cells(plan, seeds=job.seeds),
        fine_tune_cell,
        audited,
        cluster=job.cluster,
        this_run=this_run,
        describe=show_progress,
    )
    report, picture = _report(job, audited, plan, curves)
    return commit_report(
        this_run,
        report,
        picture=picture,
        parents={**this_run.parents, **_digests(audited)},
    )


def _report(
    job: AuditModel,
    audited: Audited,
    plan: Mapping[Target, Sequence[Attack]],
    curves: Mapping[Cell, list[Row]],
) -> tuple[dict[str, Any], bytes | None]:
    """What the cells came to, and of denoisers a picture."""
    task = audited.description.task
    tried = [attack for target in plan if target.role == "restricted" for attack in plan[target]]
    report = build_report(
        to_results(audited, curves, seeds=job.seeds),
        original=_measure(measure_original, audited, job.cluster),
        epochs=job.epochs,
        seeds=job.seeds,
        not_tested=not_tested(tried, task=task),
    )
    if task.has_classes:
        return report, None
    measured = _measure(measure_denoisers, audited, job.cluster)
    return to_denoiser_report(report, measured, num_timesteps=_num_timesteps(audited))


def _plan(job: AuditModel, audited: Audited) -> dict[Target, list[Attack]]:
    """Which attacks are made on which domain.

    Raises:
        ValueError: one that the recipe lists keeps a head that does not fit the domain.
    """
    plan, task = {}, audited.description.task
    for target, config in audited.targets.items():
        listed, preset = list(job.adversary or []), job.preset()
        if target.role == "benign":
            listed, preset = [job.benign_adversary or _first_possible(job.families(), task)], ()
        require_possible(attacks_of(listed), task)
        fitting = [attack for attack in attacks_of(preset) if not impossible_field(attack, task)]
        if task.has_classes:
            classes = {
                "model_classes": audited.description.num_classes,
                "domain_classes": opened(config, audited).train.num_classes,
            }
            check_fits([method for family in listed for method in family.methods], **classes)
            fitting = [attack for attack in fitting if fits(attack.method, **classes)]
        plan[target] = list(dict.fromkeys([*attacks_of(listed), *fitting]))
    return plan


def _first_possible(families: Sequence[AttackFamily], task: Task) -> AttackFamily:
    """The first that models of ``task`` can undergo, or the first at all, to be refused by name."""

    def is_possible(family: AttackFamily) -> bool:
        return not any(impossible_field(attack, task) for attack in family.attacks())

    return next(filter(is_possible, families), families[0])


def _check(audited: Audited, plan: Mapping[Target, Sequence[Attack]]) -> None:
    """Refuse before anything is started what a task would fail on."""
    needed = {IMAGES_FOR.get(a.preparation) for attacks in plan.values() for a in attacks}
    if audited.unrelated is not None:
        opened(audited.unrelated, audited)
    if "original" in needed and audited.description.task.has_classes:
        num_classes = opened(audited.original, audited).train.num_classes
        if num_classes != audited.description.num_classes:
            raise UsageError(
                f"original is {audited.original.train} with {num_classes} classes, but the model "
                f"has {audited.description.num_classes}; expected its own domain, which the "
                "attacks heal it on"
            )
    open_features(audited.denoising, device=torch.device("cpu"))
    for weights in (audited.protected, audited.unprotected):
        model_from(audited.description, weights=weights)


def _num_timesteps(audited: Audited) -> int:
    config = audited.description.config
    assert isinstance(config, Blueprint)  # of other models the audit does not ask
    return int(config.scheduler["num_train_timesteps"])


def _measure(
    task: Callable[[Audited], dict[str, Any]], audited: Audited, cluster: ClusterConfig
) -> dict[str, Any]:
    """Run ``task`` on a worker."""
    result: dict[str, Any] = ray.get(as_task(task, cluster)(audited))
    return result


def _digests(audited: Audited) -> dict[str, Any]:
    """SHA-256 of the images that were trained on and tested on."""
    by_role: dict[str, list[dict[str, str]]] = {}
    for target, config in audited.targets.items():
        by_role.setdefault(target.role, []).append(domains.digests(opened(config, audited)))
    return {"original": domains.digests(opened(audited.original, audited)), **by_role}
