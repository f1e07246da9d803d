"""What a data audit says: the appropriator that got furthest first, then every one.

An appropriator is tried under every countermeasure: each pair is a row.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypedDict

from protection.audit.countermeasures import COUNTERMEASURES
from protection.audit.verdict import Estimate, estimate
from ray_jobs.audit_report import mean_over, show
from ray_jobs.reporting import Row, percent

ARMS: Final = ("protected", "clean")


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
) -> dict[str, Any]:
    """Return the report as it is stored.

    Args:
        curves: by appropriator, in the order of ``seeds``; the same countermeasures for all.
        num_classes: chance is one of them.
        seeds: of the trainings.
    """
    rows = sorted(
        (
            _to_json(name, countermeasure, protected=protected, clean=of_one["clean"])
            for name, of_one in curves.items()
            for countermeasure, protected in of_one["protected"].items()
        ),
        key=lambda row: -row["protected"]["peak"]["mean"],
    )
    worst = rows[0]
    tried = {row["countermeasure"] for row in rows}
    return {
        "headline": {
            "worst_appropriator": worst["appropriator"],
            "worst_countermeasure": worst["countermeasure"],
            "peak_protected_accuracy": worst["protected"]["peak"]["mean"],
            "peak_clean_accuracy": worst["clean"]["peak"]["mean"],
            "chance": 1 / num_classes,
            "num_appropriators": len(curves),
            "num_countermeasures": len(tried - {"none"}),
        },
        "seeds": list(seeds),
        "not_tried": [name for name in COUNTERMEASURES if name not in tried | {"none"}],
        "appropriators": rows,
        "curves": {name: dict(of_one) for name, of_one in curves.items()},
    }


def _to_json(
    name: str,
    countermeasure: str,
    *,
    protected: Sequence[Sequence[Row]],
    clean: Sequence[Sequence[Row]],
) -> dict[str, Any]:
    return {
        "appropriator": name,
        "countermeasure": countermeasure,
        "epochs": len(protected[0]),
        **{
            arm: {
                "peak": estimate([peak(curve) for curve in curves])._asdict(),
                "last": estimate([curve[-1]["test_accuracy"] for curve in curves])._asdict(),
            }
            for arm, curves in zip(ARMS, (protected, clean), strict=True)
        },
    }


def peak(curve: Sequence[Row]) -> float:
    """Greatest test accuracy of any epoch."""
    return max(float(row["test_accuracy"]) for row in curve)


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as a person reads it: what is left, then the table, worst first."""
    headline, worst = report["headline"], report["appropriators"][0]
    protected, clean = (show(Estimate(**worst[arm]["peak"])) for arm in ARMS)
    with_it = "" if worst["countermeasure"] == "none" else f" with {worst['countermeasure']}"
    lines = [
        f"Worst case: {worst['appropriator']}{with_it} reaches {protected} % on clean test images "
        f"(peak over {worst['epochs']} epochs); trained on the clean images it reaches {clean} %, "
        f"chance is {percent(headline['chance'])}.",
        "A peak is the best epoch by the test images themselves: an upper bound on what early "
        "stopping could reach.",
        *_tried(report),
        "",
        f"Accuracy on clean test images in %, {mean_over(report['seeds'])}:",
        "",
        "| appropriator | countermeasure | epochs | peak, protected | last, protected "
        "| peak, clean | last, clean |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["appropriators"]:
        what = f"{row['appropriator']} | {row['countermeasure']} | {row['epochs']}"
        values = [show(Estimate(**row[arm][moment])) for arm in ARMS for moment in ("peak", "last")]
        lines.append(f"| {what} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])


def _tried(report: dict[str, Any]) -> list[str]:
    """What the headline is the worst of, and what it does not cover."""
    num_appropriators = report["headline"]["num_appropriators"]
    num_countermeasures = report["headline"]["num_countermeasures"]
    plural = "s" if num_appropriators > 1 else ""
    tried = f"Tried: {num_appropriators} appropriator{plural}, each trained as its recipe says"
    if num_countermeasures == 0:
        first = f"{tried}. No countermeasure was tried."
    else:
        first = (
            f"{tried}, on the protected images under every countermeasure of the table; one that "
            "changes each image once was applied to the test images, too. On the clean images none "
            "was used."
        )
    if report["not_tried"]:
        return [first, f"Countermeasures not tried: {', '.join(report['not_tried'])}."]
    return [first, "No countermeasure that Ringfence has was left out."]
