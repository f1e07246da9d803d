"""What a data audit says: the appropriator that got furthest first, then every one."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from protection.audit.verdict import Estimate, estimate
from ray_jobs.audit_report import mean_over, show
from ray_jobs.reporting import Row, percent

ARMS: Final = ("protected", "clean")


def build_report(
    curves: Mapping[str, Mapping[str, Sequence[Sequence[Row]]]],
    *,
    num_classes: int,
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Return the report as it is stored.

    Args:
        curves: of every training, by appropriator, by arm, in the order of ``seeds``; one row an
            epoch.
        num_classes: chance is one of them.
        seeds: of the trainings.
    """
    appropriators = sorted(
        (_to_json(name, by_arm) for name, by_arm in curves.items()),
        key=lambda appropriator: -appropriator["protected"]["peak"]["mean"],
    )
    worst = appropriators[0]
    return {
        "headline": {
            "worst_appropriator": worst["appropriator"],
            "peak_protected_accuracy": worst["protected"]["peak"]["mean"],
            "peak_clean_accuracy": worst["clean"]["peak"]["mean"],
            "chance": 1 / num_classes,
            "num_appropriators": len(appropriators),
            "num_countermeasures": 0,
        },
        "seeds": list(seeds),
        "appropriators": appropriators,
        "curves": {name: dict(by_arm) for name, by_arm in curves.items()},
    }


def _to_json(name: str, curves: Mapping[str, Sequence[Sequence[Row]]]) -> dict[str, Any]:
    return {
        "appropriator": name,
        "epochs": len(curves["protected"][0]),
        **{
            arm: {
                "peak": estimate([peak(curve) for curve in curves[arm]])._asdict(),
                "last": estimate([curve[-1]["test_accuracy"] for curve in curves[arm]])._asdict(),
            }
            for arm in ARMS
        },
    }


def peak(curve: Sequence[Row]) -> float:
    """Greatest test accuracy of any epoch."""
    return max(float(row["test_accuracy"]) for row in curve)


def to_markdown(report: dict[str, Any]) -> str:
    """Return the report as a person reads it: what is left, then the table, worst first."""
    worst, num_tried = report["appropriators"][0], len(report["appropriators"])
    protected, clean = (show(Estimate(**worst[arm]["peak"])) for arm in ARMS)
    lines = [
        f"Worst case: {worst['appropriator']} reaches {protected} % on clean test images (peak "
        f"over {worst['epochs']} epochs); trained on the clean images it reaches {clean} %, "
        f"chance is {percent(report['headline']['chance'])}.",
        "A peak is the best epoch by the test images themselves: an upper bound on what early "
        "stopping could reach.",
        f"Tried: {num_tried} appropriator{'s' if num_tried > 1 else ''}, each trained as its "
        "recipe says. No countermeasure was tried.",
        "",
        f"Accuracy on clean test images in %, {mean_over(report['seeds'])}:",
        "",
        "| appropriator | epochs | peak, protected | last, protected | peak, clean | last, clean |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["appropriators"]:
        values = [show(Estimate(**row[arm][moment])) for arm in ARMS for moment in ("peak", "last")]
        lines.append(f"| {row['appropriator']} | {row['epochs']} | {' | '.join(values)} |")
    return "\n".join([*lines, ""])
