"""`ringfence demo`: both main jobs from end to end, on images that ship with scikit-learn."""

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from ray_jobs import audit_data, audit_model, pretrain, protect_data, protect_model
from ray_jobs.preview import PREVIEW_PART
from ray_jobs.recipes import read_recipe
from ray_jobs.reports.stored import MARKDOWN_PART, PAGE_PART
from storage.commit import read_part

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demo:
    """Protect a model and a dataset of scikit-learn's images, audit both, and say what held."""

    output: str | None = None
    """Folder for what the demo makes; null: a new one in runs/ named by the time."""
    recipes: str = "recipes"
    """Folder of digits/ (the model's recipes) and photographs/ (the dataset's)."""


class Step(NamedTuple):
    """One command of the demo."""

    command: str
    recipe_type: type
    run: Callable[[Any], str]
    folder: str
    """Of the recipe."""
    places: Mapping[str, str]
    """Recipe fields, and the names in the demo's output that they get."""


STEPS: Final = (
    Step("pretrain", pretrain.Pretrain, pretrain.run, "digits", {"output": "model"}),
    Step(
        "protect-model",
        protect_model.ProtectModel,
        protect_model.run,
        "digits",
        {"model": "model", "output": "protected-model"},
    ),
    Step(
        "audit-model",
        audit_model.AuditModel,
        audit_model.run,
        "digits",
        {"protected": "protected-model", "output": "model-audit"},
    ),
    Step("pretrain", pretrain.Pretrain, pretrain.run, "photographs", {"output": "trajectory"}),
    Step(
        "protect-data",
        protect_data.ProtectData,
        protect_data.run,
        "photographs",
        {"trajectory": "trajectory", "output": "protected-data"},
    ),
    Step(
        "audit-data",
        audit_data.AuditData,
        audit_data.run,
        "photographs",
        {"protected": "protected-data", "output": "data-audit"},
    ),
)
# What a person looks at first: file in the output, and the committed part it is a copy of.
SHOWN: Final = {
    "model-audit.html": ("model-audit", PAGE_PART),
    "model-audit.md": ("model-audit", MARKDOWN_PART),
    "data-audit.html": ("data-audit", PAGE_PART),
    "data-audit.md": ("data-audit", MARKDOWN_PART),
    "protected-data.png": ("protected-data", PREVIEW_PART),
}


def run(job: Demo) -> str:
    """Run all jobs and return the folder of what they made.

    Raises:
        UsageError: the recipes are not there.
    """
    output = Path(job.output or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}").absolute()
    started = time.monotonic()
    for step in STEPS:
        places = {field: str(output / name) for field, name in step.places.items()}
        recipe = Path(job.recipes) / step.folder / f"{step.command}.yaml"
        arguments = "".join(f" --{field} {value}" for field, value in places.items())
        logger.info("\n$ ringfence %s --config %s%s", step.command, recipe, arguments)
        job_recipe = _on_this_machine(read_recipe(recipe, step.recipe_type))
        step.run(dataclasses.replace(job_recipe, **places))
    logger.info("demo done in %.0f s; look at", time.monotonic() - started)
    for name, (location, part) in SHOWN.items():
        (output / name).write_bytes(read_part(output / location, part))
        logger.info("  %s", output / name)
    return str(output)


def _on_this_machine(recipe: Any) -> Any:
    """The demo must run on one core, too; no result depends on the number of workers."""
    workers = min(recipe.cluster.max_workers, os.cpu_count() or 1)
    return dataclasses.replace(recipe, cluster=dataclasses.replace(recipe.cluster, workers=workers))
