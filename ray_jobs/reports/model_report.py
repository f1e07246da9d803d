"""What a model audit found, as it is stored: the headline first, then every cell, worst first.

A *cell* is one attack on one domain. It is run from three starts, with several seeds each.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from protection.audit.scores import (
    STARTS,
    cost_ratio,
    holds,
    intactness,
    is_clear,
    trainability,
    transfer_gain,
)
from ray_jobs.reporting import Row
from ray_jobs.reports.curves import accuracies, finals, measured, require_curves

MODEL_AUDIT: Final = "model-audit"
RESTRICTED: Final = "restricted"
BENIGN: Final = "benign"


class AttackResult(NamedTuple):
    """What one attack achieved on one domain."""

    attack: str
    """Its name, in tables."""
    role: str
    """Of the domain: ``restricted``, or ``benign`` where nothing should be prevented."""
    domain: str
    facts: dict[str, Any]
    """The attack's recipe fields, as JSON."""
    curves: Mapping[str, Sequence[Sequence[Row]]]
    """By start: one curve a seed, one row an epoch (epoch, loss, test_accuracy). A training that
    ended early has ``stopped`` in its last row."""


def build_report(
    results: Sequence[AttackResult],
    *,
    original: Mapping[str, float],
    epochs: int,
    seeds: Sequence[int],
    not_tested: Sequence[str],
) -> dict[str, Any]:
    """Return the report as it is stored.

    Args:
        results: of every attack on every domain; a benign one may lack the from-scratch start.
        original: original test accuracy of the protected and the unprotected model.
        epochs: passes over the training images that every fine-tuning was given.
        seeds: of the fine-tunings, in the order of the curves.
        not_tested: what the verdict does not cover, for a person.

    Raises:
        ValueError: nothing restricted was attacked, or a result is not of all starts and seeds.
    """
    for result in results:
        _require_complete(result, num_seeds=len(seeds))
    cells = sorted(
        (_cell(result) for result in results if result.role == RESTRICTED),
        key=lambda cell: -cell["transfer_gain"]["mean"],
    )
    benign = sorted(
        (_benign_cell(result) for result in results if result.role == BENIGN),
        key=lambda cell: cell["trainability"]["mean"],
    )
    if not cells:
        raise ValueError(f"results have no {RESTRICTED} domain, so there is no verdict; expected 1")
    return {
        "format": MODEL_AUDIT,
        "headline": _headline(cells, benign, original),
        "epochs": epochs,
        "seeds": list(seeds),
        "cells": cells,
        "benign": benign,
        "not_tested": list(not_tested),
    }


def _require_complete(result: AttackResult, *, num_seeds: int) -> None:
    if result.role not in (RESTRICTED, BENIGN):
        raise ValueError(
            f"role of {result.attack!r} is {result.role!r}; expected {RESTRICTED} or {BENIGN}"
        )
    needed = STARTS if result.role == RESTRICTED else STARTS[:2]
    if missing := [start for start in needed if start not in result.curves]:
        raise ValueError(
            f"curves of {result.attack!r} are of {', '.join(result.curves) or 'no start'}; "
            f"expected {', '.join(missing)} as well"
        )
    for start, curves in result.curves.items():
        require_curves(curves, num_seeds=num_seeds, name=f"{result.attack!r} from {start}")


def _starts(result: AttackResult) -> dict[str, Any]:
    return {start: measured(result.curves[start]) for start in STARTS if start in result.curves}


def _cell(result: AttackResult) -> dict[str, Any]:
    protected, scratch = result.curves["protected"], result.curves["scratch"]
    gain = transfer_gain(finals(protected), finals(scratch))
    return {
        "attack": result.attack,
        "domain": result.domain,
        "facts": result.facts,
        "holds": holds(gain),
        "is_clear": is_clear(gain),
        "transfer_gain": gain._asdict(),
        "cost": cost_ratio(accuracies(protected), accuracies(scratch))._asdict(),
        "starts": _starts(result),
    }


def _benign_cell(result: AttackResult) -> dict[str, Any]:
    kept = trainability(finals(result.curves["protected"]), finals(result.curves["unprotected"]))
    return {
        "attack": result.attack,
        "domain": result.domain,
        "facts": result.facts,
        "trainability": kept._asdict(),
        "starts": _starts(result),
    }


def _headline(
    cells: Sequence[Mapping[str, Any]],
    benign: Sequence[Mapping[str, Any]],
    original: Mapping[str, float],
) -> dict[str, Any]:
    """What counts of the report, flat: sweeps read single numbers of it."""
    gain = cells[0]["transfer_gain"]
    cheapest = min((cell["cost"] for cell in cells), key=cheapness)
    return {
        "worst_transfer_gain": gain["mean"],
        "worst_transfer_gain_margin": gain["margin"],
        "worst_attack": cells[0]["attack"],
        "worst_domain": cells[0]["domain"],
        "num_cells": len(cells),
        "num_cells_held": sum(cell["holds"] for cell in cells),
        "num_cells_unclear": sum(cell["is_clear"] is False for cell in cells),
        "least_cost_ratio": cheapest["ratio"],
        "least_cost_is_bound": cheapest["is_bound"],
        "original_accuracy": dict(original),
        "original_accuracy_drop": intactness(original["unprotected"], original["protected"]),
        "worst_trainability": benign[0]["trainability"]["mean"] if benign else None,
    }


def cheapness(cost: Mapping[str, Any]) -> tuple[float, bool]:
    """Order of costs, as a report holds them: of two equal ones the bound is the greater."""
    return cost["ratio"], cost["is_bound"]
