"""`ringfence demo`: the main job from end to end, on images that ship with scikit-learn."""

import dataclasses
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_jobs import audit_model, pretrain, protect_model
from ray_jobs.recipes import read_recipe

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Pre-train on the digits 0-4, protect against 5-9, audit, and say what held."""

    output: str | None = None
    """Folder for what the demo makes; null: a new one in runs/ named by the time."""
    recipes: str = "recipes/digits"
    """Folder of pretrain.yaml, protect-model.yaml and audit-model.yaml."""


def run(job: Demo) -> str:
    """Run the three jobs and return the location of the audit's report.

    Raises:
        UsageError: the recipes are not there.
    """
    output = Path(job.output or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    model, protected, report = (str(output / name) for name in ("model", "protected", "audit"))
    started = time.monotonic()
    steps: tuple[tuple[str, Any, Any, dict[str, str]], ...] = (
        ("pretrain", pretrain.Pretrain, pretrain.run, {"output": model}),
        (
            "protect-model",
            protect_model.ProtectModel,
            protect_model.run,
            {"model": model, "output": protected},
        ),
        (
            "audit-model",
            audit_model.AuditModel,
            audit_model.run,
            {"protected": protected, "output": report},
        ),
    )
    location = ""
    for name, recipe_type, run_job, places in steps:
        recipe = Path(job.recipes) / f"{name}.yaml"
        arguments = "".join(f" --{field} {value}" for field, value in places.items())
        logger.info("\n$ ringfence %s --config %s%s", name, recipe, arguments)
        job_recipe = _on_this_machine(read_recipe(recipe, recipe_type))
        location = run_job(dataclasses.replace(job_recipe, **places))
    logger.info("demo done in %.0f s; the report is report.md there:", time.monotonic() - started)
    return location


def _on_this_machine(recipe: Any) -> Any:
    """The demo must run on one core, too; no result depends on the number of workers."""
    workers = min(recipe.cluster.workers, os.cpu_count() or 1)
    return dataclasses.replace(recipe, cluster=dataclasses.replace(recipe.cluster, workers=workers))
