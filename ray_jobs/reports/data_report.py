"""What a data audit found, as it is stored: the headline first, then every cell, worst first.

A *cell* is one appropriator under one countermeasure, trained with several seeds.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from protection.audit.countermeasures import COUNTERMEASURES
from protection.audit.detectability import Detection
from protection.audit.scores import accuracy_cost, is_clear
from ray_jobs.reporting import Row
from ray_jobs.reports.curves import measured, peaks, require_curves

DATA_AUDIT: Final = "data-audit"


class Curves(TypedDict):
    """Of one appropriator's trainings: one curve a seed, one row an epoch."""

    clean: Sequence[Sequence[Row]]
    """Trained on clean images, without a countermeasure."""
    protected: Mapping[str, Sequence[Sequence[Row]]]
    """Trained on protected images, by countermeasure."""


def build_report(
    curves: Mapping[str, Curves],
    *,
    num_classes: int,
    seeds: Sequence[int],
    dataset: Mapping[str, Any],
    detection: Mapping[str, Detection] | None,
) -> dict[str, Any]:
    """Return the report as it is stored.

    Args:
        curves: by appropriator, in the order of ``seeds``; the same countermeasures for all.
        num_classes: chance is one of them.
        seeds: of the trainings.
        dataset: what the protected dataset's manifest says of itself, see `claims`.
        detection: by which features, how well protected images are told from clean ones; None:
            not measured.
    """
    for name, of_one in curves.items():
        for arm, trainings in {"clean images": of_one["clean"], **of_one["protected"]}.items():
            require_curves(trainings, num_seeds=len(seeds), name=f"{name!r}, {arm},")
    cells = sorted(
        (
            _cell(name, countermeasure, protected=protected, clean=of_one["clean"])
            for name, of_one in curves.items()
            for countermeasure, protected in of_one["protected"].items()
        ),
        key=lambda cell: -cell["protected"]["peak"]["mean"],
    )
    clean = {name: measured(of_one["clean"]) for name, of_one in curves.items()}
    tried = {cell["countermeasure"] for cell in cells}
    return {
        "format": DATA_AUDIT,
        "headline": {
            **_headline(cells[0], clean),
            "chance": 1 / num_classes,
            "num_appropriators": len(curves),
            "num_countermeasures": len(tried - {"none"}),
            "detectability": _greatest(detection),
        },
        "seeds": list(seeds),
        "dataset": dict(dataset),
        "detection": detection and {name: found._asdict() for name, found in detection.items()},
        "cells": cells,
        "clean": clean,
        "not_tested": [
            *(name for name in COUNTERMEASURES if name not in tried | {"none"}),
            "other architectures and other ways of training",
        ],
    }


def claims(description: Mapping[str, Any]) -> dict[str, Any]:
    """What the ``description`` in a protected dataset's manifest says of it; null where nothing."""
    metrics = description.get("metrics", {})
    return {
        "variant": description.get("variant"),
        "epsilon_levels": description.get("budget", {}).get("epsilon_levels"),
        "num_images": description.get("num_images"),
        "num_protected": description.get("num_protected"),
        **{
            name: metrics.get(name)
            for name in ("max_change_levels", "psnr_min", "psnr_median", "ssim_min", "ssim_median")
        },
    }


def _cell(
    appropriator: str,
    countermeasure: str,
    *,
    protected: Sequence[Sequence[Row]],
    clean: Sequence[Sequence[Row]],
) -> dict[str, Any]:
    cost = accuracy_cost(peaks(clean), peaks(protected))
    return {
        "appropriator": appropriator,
        "countermeasure": countermeasure,
        "epochs": max(map(len, protected)),
        "accuracy_cost": cost._asdict(),
        "is_clear": is_clear(cost),
        "protected": measured(protected),
    }


def _headline(worst: Mapping[str, Any], clean: Mapping[str, Any]) -> dict[str, Any]:
    """Of the worst cell, flat: sweeps read single numbers of it."""
    left, cost = worst["protected"]["peak"], worst["accuracy_cost"]
    return {
        "worst_appropriator": worst["appropriator"],
        "worst_countermeasure": worst["countermeasure"],
        "peak_protected_accuracy": left["mean"],
        "peak_protected_accuracy_margin": left["margin"],
        "peak_clean_accuracy": clean[worst["appropriator"]]["peak"]["mean"],
        "accuracy_cost": cost["mean"],
        "accuracy_cost_margin": cost["margin"],
    }


def _greatest(detection: Mapping[str, Detection] | None) -> float | None:
    """Balanced accuracy of the best probe."""
    if detection is None:
        return None
    return max(found.balanced_accuracy for found in detection.values())
