"""What a protected dataset is worth: every variant of SEP, for several seeds.

    python -m benchmarks.data_protection recipes/cifar10-data --data FOLDER --seeds 0 1 2

Every seed is a pipeline of its own: its protecting model, its perturbations, its appropriator. All
variants of a seed share the protecting model and spend as many gradients on an image. Interrupted,
it goes on where it was. ``--data`` is a folder of ``cifar10-train.parquet`` and the like, read in
the place of the recipes' torchvision datasets.
"""

import dataclasses
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.environment import describe_environment
from benchmarks.protection import from_parquet, parquet_path, read_options
from protection.audit.scores import Estimate, estimate
from protection.sep.config import SepConfig
from ray_jobs import audit_data, pretrain, protect_data
from ray_jobs.connection import connect
from ray_jobs.image_sets import ImageSetConfig
from ray_jobs.recipes import read_recipe
from ray_jobs.reports.stored import read_report
from ray_jobs.reports.wording import show
from storage.blobs import open_blobs
from storage.commit import is_committed, read_manifest

BUDGETS = (8, 2)


class Recipes(NamedTuple):
    """The recipes of a folder, with their images found."""

    pretrain: pretrain.Pretrain
    protect: protect_data.ProtectData
    audit: audit_data.AuditData


def main() -> None:
    """Run the pipelines and print the table."""
    options = read_options(str(__doc__))
    started = time.monotonic()
    recipes = read_recipes(options.recipes, options.data)
    output = (options.output / options.recipes.name).absolute()
    for seed in options.seeds:
        protect_all(recipes, output / f"seed{seed}", seed)
    reports = audit_all(recipes, output, options.seeds)
    print(f"# Protected datasets by {options.recipes}\n\n{describe_environment()}")
    print(f"Wall time of this call: {(time.monotonic() - started) / 60:.0f} min.\n")
    print(to_markdown(recipes, reports, options.seeds, output))


def read_recipes(folder: Path, data: Path | None) -> Recipes:
    """Read the folder's recipes; their torchvision datasets are looked for in ``data``."""
    train = read_recipe(folder / "pretrain.yaml", pretrain.Pretrain)
    protect = read_recipe(folder / "protect-data.yaml", protect_data.ProtectData)
    audit = read_recipe(folder / "audit-data.yaml", audit_data.AuditData)
    if data is None:
        return Recipes(train, protect, audit)

    def found(config: ImageSetConfig) -> ImageSetConfig:
        return dataclasses.replace(config, source=parquet_path(config.source, data), download=False)

    return Recipes(
        dataclasses.replace(train, original=from_parquet(train.original, data)),
        dataclasses.replace(protect, dataset=found(protect.dataset)),
        dataclasses.replace(audit, test=found(audit.test)),
    )


def variants(sep: SepConfig) -> dict[str, SepConfig]:
    """The published variants, and one checkpoint, all of ``members * steps`` gradients an image."""
    aligned = dataclasses.replace(sep, feature_alignment=True)
    half = sep.members // 2  # the inner loop costs as much again
    return {
        "SEP": sep,
        "SEP-FA": aligned,
        "SEP-FA-VR": dataclasses.replace(
            aligned, variance_reduction=True, members=half, inner_steps=half
        ),
        "one checkpoint": dataclasses.replace(sep, members=1, steps=sep.members * sep.steps),
    }


def protect_all(recipes: Recipes, output: Path, seed: int) -> None:
    """Train the protecting model of one seed, and protect by every variant at every budget."""
    model = str(output / "model")
    if not is_committed(model):
        training = dataclasses.replace(recipes.pretrain.training, seed=seed)
        pretrain.run(dataclasses.replace(recipes.pretrain, training=training, output=model))
    for epsilon_levels in BUDGETS:
        for name, sep in variants(recipes.protect.sep).items():
            location = protected_location(output, name, epsilon_levels)
            if not is_committed(location):
                sep = dataclasses.replace(
                    sep,
                    epsilon_levels=epsilon_levels,
                    step_size_levels=max(1, epsilon_levels / 4),
                    seed=seed,
                )
                job = dataclasses.replace(
                    recipes.protect, trajectory=model, output=location, sep=sep
                )
                protect_data.run(job)


def protected_location(output: Path, variant: str, epsilon_levels: int) -> str:
    """Where one protected dataset of a seed is."""
    return str(output / f"{variant.lower().replace(' ', '-')}-{epsilon_levels}")


def audit_all(
    recipes: Recipes, output: Path, seeds: list[int]
) -> dict[tuple[int, str, int], dict[str, Any]]:
    """Return every audit's report by seed, variant and budget, two audits at a time."""
    connect(recipes.audit.cluster)
    keys = [
        (seed, name, epsilon_levels)
        for epsilon_levels in BUDGETS
        for name in variants(recipes.protect.sep)
        for seed in seeds
    ]
    with ThreadPoolExecutor(recipes.audit.cluster.max_workers) as pool:
        # The first of each seed trains on the clean images; the others take that training over.
        first = list(pool.map(lambda key: audit(recipes, output, *key), keys[: len(seeds)]))
        rest = list(pool.map(lambda key: audit(recipes, output, *key), keys[len(seeds) :]))
    return dict(zip(keys, first + rest, strict=True))


def audit(
    recipes: Recipes, output: Path, seed: int, variant: str, epsilon_levels: int
) -> dict[str, Any]:
    """Return one audit's report, running what is not finished."""
    protected = protected_location(output / f"seed{seed}", variant, epsilon_levels)
    location = f"{protected}-audit"
    if not is_committed(location):
        kept, cell = open_blobs(output / f"seed{seed}" / "clean"), "appropriator0-clean-seed"
        name = f"cells/{cell}{seed}.json"
        if kept.exists(name):
            open_blobs(f"{location}.run").put(name, kept.get(name))
        one_at_a_time = dataclasses.replace(recipes.audit.cluster, workers=1)
        audit_data.run(
            dataclasses.replace(
                recipes.audit,
                protected=protected,
                output=location,
                seeds=[seed],
                cluster=one_at_a_time,
            )
        )
        kept.put(name, open_blobs(f"{location}.run").get(name))
    return read_report(location).report


def to_markdown(
    recipes: Recipes,
    reports: dict[tuple[int, str, int], dict[str, Any]],
    seeds: list[int],
    output: Path,
) -> str:
    """Table of what appropriators reach, in per cent, and of what can be seen."""

    def over_seeds(arm: str, moment: str, variant: str, epsilon_levels: int) -> Estimate:
        values = []
        for seed in seeds:
            report = reports[seed, variant, epsilon_levels]
            (clean,) = report["clean"].values()
            of_arm = report["cells"][0]["protected"] if arm == "protected" else clean
            values.append(of_arm[moment]["mean"])
        return estimate(values)

    def detectability(variant: str, epsilon_levels: int) -> Estimate:
        headlines = [reports[seed, variant, epsilon_levels]["headline"] for seed in seeds]
        return estimate([headline["detectability"] for headline in headlines])

    epochs = recipes.audit.appropriators[0].training.epochs
    lines = [
        f"Accuracy on clean test images in %, peak over {epochs} epochs and last, mean over seeds "
        f"{seeds} and half of the 95 % interval:",
        "",
        "| trained on | budget | peak | last | median PSNR, dB | median SSIM | told from clean |",
        "|---|---|---|---|---|---|---|",
        f"| clean images | - | {show(over_seeds('clean', 'peak', 'SEP', 8))} | "
        f"{show(over_seeds('clean', 'final', 'SEP', 8))} | - | - | - |",
    ]
    for epsilon_levels in BUDGETS:
        for variant in variants(recipes.protect.sep):
            metrics: Any = read_manifest(
                protected_location(output / f"seed{seeds[0]}", variant, epsilon_levels)
            ).description["metrics"]
            lines.append(
                f"| {variant} | {epsilon_levels}/255 | "
                f"{show(over_seeds('protected', 'peak', variant, epsilon_levels))} | "
                f"{show(over_seeds('protected', 'final', variant, epsilon_levels))} | "
                f"{metrics['psnr_median']:.1f} | {metrics['ssim_median']:.4f} | "
                f"{show(detectability(variant, epsilon_levels))} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
