"""What an audit says: the verdict first, then every cell, worst first."""

from collections.abc import Mapping, Sequence
from typing import Any

from protection.audit.verdict import CellVerdict, Estimate, judge, worst_first
from ray_jobs.reporting import Row, percent


def build_report(
    accuracies: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    original: Mapping[str, float],
    epochs: int,
    seeds: Sequence[int],
    curves: Mapping[str, Sequence[Row]],
) -> dict[str, Any]:
    """Return the report as it is stored.

    Args:
        accuracies: restricted test accuracy by cell, by start, in the order of ``seeds``.
        original: original test accuracy of the protected and the unprotected model.
        epochs: passes over the restricted training images that every fine-tuning made.
        seeds: of the fine-tunings.
        curves: of every fine-tuning, one row an epoch.
    """
    verdicts = worst_first(judge(cell, by_start) for cell, by_start in accuracies.items())
    return {
        "headline": {
            "worst_transfer_gain": verdicts[0].transfer_gain.mean,
            "worst_cell": verdicts[0].cell,
            "num_cells": len(verdicts),
            "num_cells_held": sum(verdict.holds for verdict in verdicts),
            "original_accuracy": dict(original),
        },
        "epochs": epochs,
        "seeds": list(seeds),
        "cells": [_to_json(verdict) for verdict in verdicts],
        "curves": dict(curves),
    }


def _to_json(verdict: CellVerdict) -> dict[str, Any]:
    return {
        "cell": verdict.cell,
        "holds": verdict.holds,
        "transfer_gain": verdict.transfer_gain._asdict(),
        **{start: value._asdict() for start, value in verdict.accuracies.items()},
    }


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as a person reads it: the verdict, then the table, worst cell first."""
    headline = report["headline"]
    held, total = headline["num_cells_held"], headline["num_cells"]
    original = headline["original_accuracy"]
    drop = 100 * (original["unprotected"] - original["protected"])
    gain = 100 * headline["worst_transfer_gain"]
    failed = total - held
    verdict = (
        f"DID NOT HOLD: {failed} of {total} strategies do better from it than from scratch"
        if failed
        else "HELD under every strategy tried"
    )
    seeds = len(report["seeds"])
    lines = [
        f"The protection {verdict}.",
        f"Worst case: {gain:+.1f} points over from-scratch, by {headline['worst_cell']}.",
        f"Original accuracy: {percent(original['unprotected'])} unprotected, "
        f"{percent(original['protected'])} protected ({-drop:+.1f} points).",
        "",
        f"Restricted test accuracy after {report['epochs']} epochs, mean over {seeds} "
        f"seed{'s' if seeds > 1 else ''}{' and 95 % interval' if seeds > 1 else ''}:",
        "",
        "| strategy | protected | scratch | unprotected | protected - scratch | held |",
        "|---|---|---|---|---|---|",
    ]
    for cell in report["cells"]:
        values = [
            show(Estimate(**cell[start])) for start in ("protected", "scratch", "unprotected")
        ]
        gain_text = show(Estimate(**cell["transfer_gain"]), sign="+")
        held_text = "yes" if cell["holds"] else "NO"
        lines.append(f"| {cell['cell']} | {' | '.join(values)} | {gain_text} | {held_text} |")
    return "\n".join([*lines, ""])


def show(value: Estimate, *, sign: str = "") -> str:
    """Write an estimate in points: mean and half-width of the 95 % interval."""
    margin = "" if value.margin is None else f" ± {100 * value.margin:.1f}"
    return f"{100 * value.mean:{sign}.1f}{margin}"
