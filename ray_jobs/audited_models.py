"""What a model audit is of: from its recipe, and from the protected model's manifest."""

import dataclasses
from typing import Any

from protection.models import ModelConfig
from ray_jobs import domains
from ray_jobs.attack_cells import Audited, Target
from ray_jobs.audit_recipe import AuditModel
from ray_jobs.denoiser_cells import DenoisingAudit
from ray_jobs.domains import DomainConfig, open_domain
from ray_jobs.errors import UsageError
from ray_jobs.image_sets import absolute_root
from ray_jobs.model_files import ModelDescription, describe
from storage.commit import read_manifest
from storage.location import parse_location


def resolve(job: AuditModel) -> Audited:
    """Return what ``job`` audits, with the rest read from the protected model's manifest.

    Raises:
        UsageError: the recipe leaves out what the manifest does not say.
        StorageError: a model or a domain cannot be read.
    """
    protected = str(parse_location(job.protected))
    recipe: Any = {}
    if job.network is None:
        recipe = read_manifest(protected).description.get("recipe", {})
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
    original = domains.absolute(job.original or DomainConfig(**recipe["original"]))
    restricted = job.restricted or [DomainConfig(**domain) for domain in recipe["restricted"]]
    by_role = {"restricted": restricted, "benign": job.benign or []}
    description = _describe(protected, job.network, original)
    if job.denoising is not None and description.task.has_classes:
        raise UsageError(
            f"denoising is given, but {protected} is a classifier; expected denoising: null"
        )
    return Audited(
        protected=protected,
        unprotected=str(parse_location(unprotected)),
        description=description,
        original=original,
        targets={
            Target(role, index): domains.absolute(config)
            for role, configs in by_role.items()
            for index, config in enumerate(configs)
        },
        unrelated=None if job.unrelated is None else domains.absolute(job.unrelated),
        epochs=job.epochs,
        stop_hopeless_after=job.stop_hopeless_after,
        device="cuda" if job.cluster.uses_gpu else "cpu",
        denoising=_absolute(job.denoising or DenoisingAudit()),
    )


def _absolute(config: DenoisingAudit) -> DenoisingAudit:
    """``config`` with an absolute path: workers have other working directories."""
    return dataclasses.replace(config, feature_network=absolute_root(config.feature_network))


def _describe(
    protected: str, network: ModelConfig | None, original: DomainConfig
) -> ModelDescription:
    if network is None:
        return describe(protected)
    train = open_domain(original, image_size=network.image_size).train
    return ModelDescription(network, train.num_classes, list(train.class_names))
