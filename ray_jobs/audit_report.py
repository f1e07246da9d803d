"""What an audit says: the verdict first, then every cell, worst first."""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from protection.audit.verdict import CellVerdict, Estimate, judge, worst_first
from ray_jobs.reporting import Row, percent
from ray_jobs.runs import Run, provenance
from storage.commit import commit

logger = logging.getLogger(__name__)


class AttackResult(NamedTuple):
    """What one attack on one domain came to."""

    attack: str
    """Name, for tables."""
    role: str
    """restricted: fine-tuning should fail; benign: it should still work."""
    domain: str
    """A short description, of no other domain of the role."""
    facts: dict[str, Any]
    """The attack's fields, as JSON holds them."""
    curves: Mapping[str, Sequence[Sequence[Row]]]
    """By start: one curve a seed, one row an epoch."""


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
        results: of every attack on every domain.
        original: original test accuracy of the protected and the unprotected model.
        epochs: the defender's horizon, passes over the restricted training images.
        seeds: of the fine-tunings, in the order of every result's curves.
        not_tested: what is known to Ringfence and was not tried.
    """
    restricted = [result for result in results if result.role == "restricted"]
    several = len({result.domain for result in restricted}) > 1
    verdicts = worst_first(
        judge(
            f"{result.domain}: {result.attack}" if several else result.attack,
            {
                start: [curve[-1]["test_accuracy"] for curve in curves]
                for start, curves in result.curves.items()
            },
        )
        for result in restricted
    )
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
        "not_tested": list(not_tested),
        "cells": [_to_json(verdict) for verdict in verdicts],
        "results": [result._asdict() for result in results],
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
    lines = [
        f"The protection {verdict}.",
        f"Worst case: {gain:+.1f} points over from-scratch, by {headline['worst_cell']}.",
        f"Original accuracy: {percent(original['unprotected'])} unprotected, "
        f"{percent(original['protected'])} protected ({-drop:+.1f} points).",
        "",
        f"Restricted test accuracy after {report['epochs']} epochs, {mean_over(report['seeds'])}:",
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


def mean_over(seeds: Sequence[int]) -> str:
    """Say what the numbers of a table are that `show` writes."""
    if len(seeds) == 1:
        return "mean over 1 seed"
    return f"mean over {len(seeds)} seeds and 95 % interval"


def commit_report(
    this_run: Run,
    report: dict[str, Any],
    markdown: str,
    *,
    kind: str,
    parents: Mapping[str, object],
) -> str:
    """Publish ``report`` at the run's output, show it, and return the location.

    Args:
        this_run: of the audit.
        report: its ``headline`` becomes the manifest's metrics.
        markdown: the same for a person.
        kind: of the commit.
        parents: what was audited, and against what.
    """
    commit(
        this_run.output,
        {
            "report.json": json.dumps(report, indent=2).encode(),
            "report.md": markdown.encode(),
        },
        kind=kind,
        description={
            **provenance(this_run),
            "metrics": report["headline"],
            "parents": dict(parents),
        },
    )
    logger.info("\n%s", markdown)
    return str(this_run.output)
