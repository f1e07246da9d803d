"""What a protection is worth: one recipe folder's pipeline, for several seeds.

    python -m benchmarks.protection recipes/cifar10-mnist --data FOLDER --seeds 0 1 2

Every seed is a pipeline of its own: its weights, its protection, its adversary. The table's
interval is over pipelines. An interrupted benchmark goes on where it was. ``--data`` is a folder
of ``cifar10-train.parquet`` and the like, read in the place of the recipes' torchvision datasets.
"""

import argparse
import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.environment import describe_environment
from protection.audit.scores import STARTS, estimate, transfer_gain
from ray_jobs import audit_model, pretrain, protect_model
from ray_jobs.domains import DomainConfig
from ray_jobs.recipes import read_recipe
from ray_jobs.reports.stored import read_report
from ray_jobs.reports.wording import show
from storage.commit import is_committed


def main() -> None:
    """Run the pipelines and print the table."""
    options = read_options(str(__doc__))
    started = time.monotonic()
    reports = [
        run_pipeline(options.recipes, options.output / options.recipes.name, seed, options.data)
        for seed in options.seeds
    ]
    print(f"# Protection by {options.recipes}\n\n{describe_environment()}")
    print(f"Wall time of this call: {(time.monotonic() - started) / 60:.0f} min.\n")
    print(to_markdown(reports, options.seeds))


def read_options(description: str) -> argparse.Namespace:
    """Command line of a benchmark that runs a folder of recipes for several seeds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("recipes", type=Path)
    parser.add_argument("--data", type=Path, help="folder of NAME-train.parquet, NAME-test.parquet")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks"))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return parser.parse_args()


def run_pipeline(recipes: Path, output: Path, seed: int, data: Path | None) -> dict[str, Any]:
    """Return the audit's report for one seed, running what is not committed yet."""
    model, protected, audit = (
        str((output / f"seed{seed}" / name).absolute()) for name in ("model", "protected", "audit")
    )

    def domain(config: DomainConfig) -> DomainConfig:
        return config if data is None else from_parquet(config, data)

    train = read_recipe(recipes / "pretrain.yaml", pretrain.Pretrain)
    protect = read_recipe(recipes / "protect-model.yaml", protect_model.ProtectModel)
    attack = read_recipe(recipes / "audit-model.yaml", audit_model.AuditModel)
    jobs = (
        (
            pretrain.run,
            dataclasses.replace(
                train,
                original=domain(train.original),
                training=dataclasses.replace(train.training, seed=seed),
                output=model,
            ),
        ),
        (
            protect_model.run,
            dataclasses.replace(
                protect,
                model=model,
                original=domain(protect.original),
                restricted=[domain(config) for config in protect.restricted],
                sophon=dataclasses.replace(protect.sophon, seed=seed),
                output=protected,
            ),
        ),
        (
            audit_model.run,
            dataclasses.replace(
                attack,
                protected=protected,
                restricted=attack.restricted and [domain(config) for config in attack.restricted],
                seeds=[seed],
                output=audit,
            ),
        ),
    )
    for run, job in jobs:
        if not is_committed(job.output):
            run(job)
    return read_report(audit).report


def from_parquet(config: DomainConfig, data: Path) -> DomainConfig:
    """``config`` with torchvision/NAME:SPLIT read from ``data``/name-split.parquet."""
    return dataclasses.replace(
        config,
        train=parquet_path(config.train, data),
        test=parquet_path(config.test, data),
        download=False,
    )


def parquet_path(source: str, data: Path) -> str:
    """Path of torchvision/NAME:SPLIT as ``data``/name-split.parquet."""
    name, _, split = source.removeprefix("torchvision/").partition(":")
    return str((data / f"{name.lower()}-{split}.parquet").absolute())


def to_markdown(reports: list[dict[str, Any]], seeds: list[int]) -> str:
    """Table over pipelines, worst attack first, in per cent."""

    def accuracies(attack: str, start: str) -> list[float]:
        return [
            cell["starts"][start]["final"]["mean"]
            for report in reports
            for cell in report["cells"]
            if cell["attack"] == attack
        ]

    by_attack = {
        attack: {start: accuracies(attack, start) for start in STARTS}
        for attack in (cell["attack"] for cell in reports[0]["cells"])
    }
    gains = {
        attack: transfer_gain(by_start["protected"], by_start["scratch"])
        for attack, by_start in by_attack.items()
    }
    headlines = [report["headline"] for report in reports]
    before, after = (
        estimate([headline["original_accuracy"][model] for headline in headlines])
        for model in ("unprotected", "protected")
    )
    drop = estimate([headline["original_accuracy_drop"] for headline in headlines])
    lines = [
        f"Original test accuracy: {show(before)} unprotected, {show(after)} protected, drop "
        f"{show(drop)} points (seeds {seeds}).",
        "",
        f"Restricted test accuracy after {reports[0]['epochs']} epochs, %:",
        "",
        "| strategy | protected | scratch | unprotected | protected - scratch |",
        "|---|---|---|---|---|",
    ]
    for attack in sorted(gains, key=lambda attack: -gains[attack].mean):
        protected, unprotected, scratch = (
            show(estimate(by_attack[attack][start])) for start in STARTS
        )
        lines.append(
            f"| {attack} | {protected} | {scratch} | {unprotected} | {show(gains[attack])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
