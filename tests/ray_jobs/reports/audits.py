"""Small reports to show: of a model audit and of a data audit."""

from collections.abc import Sequence
from typing import Any

from protection.audit.detectability import Detection
from ray_jobs.reporting import Row
from ray_jobs.reports import data_report
from ray_jobs.reports.data_report import Curves
from ray_jobs.reports.model_report import BENIGN, RESTRICTED, AttackResult, build_report

Trainings = Sequence[Sequence[Row]]

RUN = {
    "command": "audit-model",
    "recipe": {"protected": "/home/somebody/runs/digits/protected", "seeds": [0, 1]},
    "versions": {"python": "3.11.7", "ringfence": "0.1.0"},
    "date": "2026-11-22",
    "parents": {
        "protected": "/home/somebody/runs/digits/protected",
        "protected_commit": "0123456789abcdef" * 2,
        "restricted": [{"train": "ab" * 32, "test": "cd" * 32}],
    },
}
# What protect-data says of a dataset, as `claims` returns it.
DATASET = {
    "variant": "SEP",
    "epsilon_levels": 8,
    "num_images": 5000,
    "num_protected": 1250,
    "max_change_levels": 8,
    "psnr_min": 30.4,
    "psnr_median": 30.9,
    "ssim_min": 0.71,
    "ssim_median": 0.954,
}
DETECTION = {"pixels": Detection(0.55, 0.58), "spectrum": Detection(0.96, 0.98)}


def curve(*accuracies: float, **last: object) -> list[Row]:
    rows: list[Row] = [
        {"epoch": epoch, "loss": 1.0, "test_accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies)
    ]
    rows[-1].update(last)
    return rows


def attack(
    name: str,
    protected: Trainings,
    *,
    scratch: Trainings | None = None,
    unprotected: Trainings | None = None,
    role: str = RESTRICTED,
    domain: str = "MNIST",
    **facts: object,
) -> AttackResult:
    """Scratch ends at 0.5 where nothing else is said, unprotected at 0.9."""
    starts = {
        "protected": protected,
        "unprotected": unprotected or [curve(0.8, 0.9) for _ in protected],
        "scratch": scratch or [curve(0.4, 0.5) for _ in protected],
    }
    return AttackResult(name, role, domain, facts, starts)


def model_report(
    *results: AttackResult, not_tested: Sequence[str] = ("LoRA",), seeds: Sequence[int] = (0, 1)
) -> dict[str, Any]:
    report = build_report(
        results,
        original={"protected": 0.93, "unprotected": 0.95},
        epochs=2,
        seeds=seeds,
        not_tested=not_tested,
    )
    return {**report, "run": RUN}


def two_attacks(worst: float = 0.6, **changes: Any) -> dict[str, Any]:
    """One that ends at ``worst``, and one that is far below scratch."""
    return model_report(
        attack("mild", [curve(0.3, 0.1), curve(0.1, 0.2)], method="head_only"),
        attack("strong", [curve(0.1, worst), curve(0.1, worst)], method="all_layers"),
        attack("gentle", [curve(0.5, 0.7), curve(0.5, 0.8)], role=BENIGN, domain="SVHN"),
        **changes,
    )


def data_report_of(curves: dict[str, Curves], **changes: Any) -> dict[str, Any]:
    values = {"num_classes": 8, "seeds": [3, 4], "dataset": DATASET, "detection": DETECTION}
    report = data_report.build_report(curves, **{**values, **changes})
    run = {**RUN, "command": "audit-data"}
    return {**report, "run": run}
