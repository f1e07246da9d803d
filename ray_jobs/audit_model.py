"""`ringfence audit-model`: what fine-tuning achieves from three starts, worst case first.

The starts are the protected model, the unprotected one and a from-scratch one. Every fine-tuning is
one cell.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from protection.audit.attacks import IMAGES_FOR, Attack, impossible_field, require_possible
from protection.audit.families import AttackFamily
from protection.audit.threat_models import THREAT_MODELS, attacks_of, not_tested
from protection.denoisers import Blueprint
from protection.models import ModelConfig
from protection.names import nearest
from protection.sophon.adversary import check_fits, fits
from ray_jobs import domains
from ray_jobs.attack_cells import (
    Audited,
    Target,
    cells,
    fine_tune_cell,
    measure_denoisers,
    measure_original,
    opened,
    show_progress,
    to_results,
)
from ray_jobs.audited_models import resolve
from ray_jobs.cells import as_task, require_seeds, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import connect
from ray_jobs.denoiser_cells import DenoisingAudit, open_features
from ray_jobs.domains import DomainConfig
from ray_jobs.errors import UsageError
from ray_jobs.lineage import parent
from ray_jobs.model_files import check_described, model_from
from ray_jobs.reports.denoiser_report import to_denoiser_report
from ray_jobs.reports.model_report import build_report
from ray_jobs.reports.stored import commit_report
from ray_jobs.runs import begin, find_run


@dataclass(frozen=True, kw_only=True)
class AuditModel:
    """Measure what fine-tuning achieves from a protected, an unprotected and a new model."""

    protected: str
    """Location of the protected model, as `protect-model` printed it; or a .safetensors file, with
    `network`, `unprotected`, `original` and `restricted` beside it."""
    output: str
    """Location to commit the report to; must not exist yet."""
    unprotected: str | None = None
    """The model that was protected; null: the one that the protected model's manifest names."""
    network: ModelConfig | None = None
    """What a .safetensors file holds the weights of; null for a committed model, which says so
    itself."""
    original: DomainConfig | None = None
    """Domain that must have kept its accuracy; null: the one it was protected with."""
    restricted: list[DomainConfig] | None = None
    """Domains to fine-tune to; null: those it was protected against."""
    adversary: list[AttackFamily] | None = None
    """Attacks to try: every combination of every family; null: those of `threat_model` alone."""
    threat_model: str | None = None
    """Attacks by name, besides those of `adversary`: short (some ten), default (some thirty) or
    thorough (23,000: a cluster's work, and `unrelated`); null: none, or default where there is no
    `adversary`. Those that keep a head of too few classes for a domain are left out."""
    unrelated: DomainConfig | None = None
    """Domain for the preparation heal_unrelated."""
    benign: list[DomainConfig] | None = None
    """Domains that fine-tuning should still work for; null: that is not measured."""
    benign_adversary: AttackFamily | None = None
    """How these are fine-tuned to; null: by the first family of the attacks."""
    epochs: int = 20
    """Passes over the restricted training images."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Repetitions of every fine-tuning: order of images, redrawn heads, and the from-scratch
    weights."""
    stop_hopeless_after: int | None = None
    """Epochs in a row at chance after which a fine-tuning is given up; null: never. Saves time, and
    misses an adversary that would have got through later."""
    denoising: DenoisingAudit | None = None
    """How images are drawn, where the models are denoisers; null: as by default."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Reject an audit that would measure nothing, or not what it says."""
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; expected at least 1")
        require_seeds(self.seeds)
        check_described("protected", self.protected, self.network)
        for name in ("adversary", "restricted", "benign"):
            if getattr(self, name) == []:
                raise ValueError(f"{name} is empty, so nothing is tried; expected one, or null")
        if self.threat_model is not None and self.threat_model not in THREAT_MODELS:
            raise ValueError(
                f"threat_model is {self.threat_model!r}, which names none; expected "
                f"{', '.join(THREAT_MODELS)} or null{nearest(self.threat_model, THREAT_MODELS)}"
            )
        if self.stop_hopeless_after is not None and self.stop_hopeless_after < 1:
            raise ValueError(
                f"stop_hopeless_after is {self.stop_hopeless_after}; expected at least 1 epoch, or "
                "null"
            )
        if self.benign_adversary is not None and self.benign is None:
            raise ValueError(
                "benign_adversary is given, but benign is null, so it has nothing to do; expected "
                "benign domains"
            )
        self._check_unrelated()

    def _check_unrelated(self) -> None:
        families = [*self.families(), *filter(None, [self.benign_adversary])]
        is_used = any("heal_unrelated" in family.preparations for family in families)
        if is_used and self.unrelated is None:
            raise ValueError(
                "unrelated is null, but heal_unrelated is among the preparations; expected the "
                "domain to heal on"
            )
        if self.unrelated is not None and not is_used:
            raise ValueError(
                f"unrelated is {self.unrelated.train}, but no attack uses it; expected null, or "
                "heal_unrelated among the preparations"
            )

    def families(self) -> list[AttackFamily]:
        """The threat model: what `adversary` lists, then what `threat_model` names."""
        return [*(self.adversary or []), *self.preset()]

    def preset(self) -> Sequence[AttackFamily]:
        """What `threat_model` names."""
        if self.threat_model is None:
            return () if self.adversary else THREAT_MODELS["default"]
        return THREAT_MODELS[self.threat_model]


def run(job: AuditModel) -> str:
    """Run every cell, commit the report, and return its location.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: a fine-tuning failed.
    """
    audited = resolve(job)
    plan = _plan(job, audited)
    _check(audited, plan)
    if job.denoising is not None and audited.description.task.has_classes:
        raise UsageError(
            f"denoising is given, but {audited.protected} is a classifier; expected denoising: null"
        )
    this_run = find_run(job, verb="audit-model")
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
    is_classifier = audited.description.task.has_classes
    report = build_report(
        to_results(audited, curves, seeds=job.seeds),
        original=_measure(measure_original, audited, job.cluster),
        epochs=job.epochs,
        seeds=job.seeds,
        not_tested=not_tested(
            (
                attack
                for target, attacks in plan.items()
                if target.role == "restricted"
                for attack in attacks
            ),
            task=audited.description.task,
        ),
    )
    picture = None
    if not is_classifier:
        measured = _measure(measure_denoisers, audited, job.cluster)
        report, picture = to_denoiser_report(
            report, measured, num_timesteps=_num_timesteps(audited)
        )
    return commit_report(
        this_run,
        report,
        picture=picture,
        parents={
            **parent("protected", audited.protected),
            **parent("unprotected", audited.unprotected),
            **_digests(audited),
        },
    )


def _plan(job: AuditModel, audited: Audited) -> dict[Target, list[Attack]]:
    """Which attacks are made on which domain.

    Raises:
        ValueError: one that the recipe lists keeps a head that does not fit the domain.
    """
    plan, task = {}, audited.description.task
    for target, config in audited.targets.items():
        listed, preset = list(job.adversary or []), job.preset()
        if target.role == "benign":
            listed, preset = [job.benign_adversary or job.families()[0]], ()
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
