"""A model audit as it is shown."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from protection.audit.scores import STARTS, Cost, Estimate
from ray_jobs.reporting import percent
from ray_jobs.reports.attack_views import (
    LINES,
    TERMS,
    cell_outcome,
    cost_score,
    domains_of,
    held_score,
    name_of,
    names_of,
    overall,
    purpose,
    scope,
    verdict,
)
from ray_jobs.reports.heat_maps import gain_maps
from ray_jobs.reports.views import NUM_CHARTS, Chart, Line, Score, Table, View, chart_series
from ray_jobs.reports.wording import (
    NOISE,
    count,
    mean_over,
    points,
    show,
    show_cost,
    show_stored,
)

# Beside what ended before its last epoch.
_STOPPED: Final = " †"

_TERMS: Final = {
    **TERMS,
    "Original accuracy": "Accuracy on the images that the model was made for. What protecting the "
    "model cost of it is its intactness.",
    "Transfer gain": "Accuracy that fine-tuning reaches from the protected model, less what the "
    "same training reaches from random weights. At most 0: the protection held.",
    "Adversary's cost": "Epochs that the protected model needs to reach the last accuracy of "
    "training from scratch, divided by those that scratch needs itself; the median over seeds.",
    "Benign trainability": "Accuracy that fine-tuning to an unrelated domain reaches from the "
    "protected model, less what it reaches from the unprotected one. At 0 nothing is lost.",
    "±": NOISE,
}


def model_view(report: Mapping[str, Any]) -> View:
    """Return what is shown of a model audit's ``report``."""
    cells, benign = report["cells"], report["benign"]
    return View(
        kind="Model audit",
        verdict=_verdict(report),
        outcome=overall(report),
        purpose=purpose(cells),
        scope=scope(report, _tried(cells)),
        scores=_scores(report),
        tables=[_cells_table(report), *([_benign_table(report)] if benign else [])],
        heat_maps=gain_maps(cells),
        charts=[
            Chart(
                title=name_of(cell, cells),
                note=f"{show_stored(cell['transfer_gain'], sign='+')} points above scratch",
                series=chart_series(cell["starts"]),
            )
            for cell in cells[:NUM_CHARTS]
        ],
        lines=LINES,
        not_tested=report["not_tested"],
        terms=_TERMS,
    )


def _tried(cells: Sequence[Mapping[str, Any]]) -> str:
    domains = domains_of(cells)
    return count(len(cells), "attack") + (f" on {len(domains)} domains" if domains[1:] else "")


def _verdict(report: Mapping[str, Any]) -> str:
    cells = report["cells"]
    gain = Estimate(**cells[0]["transfer_gain"])
    side = "above" if gain.mean > 0 else "below"
    ends = f"{show(gain._replace(mean=abs(gain.mean)))} points {side} training from scratch"
    return verdict(report, _tried(cells), ends=ends)


def _scores(report: Mapping[str, Any]) -> list[Score]:
    headline, worst = report["headline"], report["cells"][0]
    gain = show_stored(worst["transfer_gain"], sign="+")
    unclear = headline["num_cells_unclear"]
    original = headline["original_accuracy"]
    change = points(-headline["original_accuracy_drop"], sign="+")
    return [
        Score("Worst transfer gain", gain, "points", name_of(worst, report["cells"])),
        held_score(
            report, f"{unclear} of {headline['num_cells']} within the noise" if unclear else ""
        ),
        cost_score(report["cells"]),
        Score(
            "Original accuracy",
            points(original["protected"]),
            "%",
            f"{change} points from {percent(original['unprotected'])} unprotected",
        ),
        _benign_score(report["benign"]),
    ]


def _benign_score(benign: Sequence[Mapping[str, Any]]) -> Score:
    name = "Benign trainability"
    if not benign:
        return Score(name, "not measured", "", "fine-tuning to an unrelated domain")
    kept = show_stored(benign[0]["trainability"], sign="+")
    return Score(
        name,
        kept,
        "points",
        f"against the unprotected model, at worst: {benign[0]['attack']} on {benign[0]['domain']}",
    )


def _cells_table(report: Mapping[str, Any]) -> Table:
    cells = report["cells"]
    names = names_of(cells)
    measured = ["gain", "outcome", "protected", "its peak", "scratch", "unprotected", "cost"]
    return Table(
        title="Every attack, worst first",
        note=f"Restricted test accuracy in % after {count(report['epochs'], 'epoch')}, "
        f"{mean_over(report['seeds'])}. Gain: protected less scratch. Cost: epochs to what scratch "
        f"reaches, over scratch's own.{_stopped_note(cells)}",
        columns=[*names, *measured],
        num_names=len(names),
        lines=[
            Line([*[cell[name] for name in names], *_values(cell)], is_bad=not cell["holds"])
            for cell in cells
        ],
    )


def _values(cell: Mapping[str, Any]) -> list[str]:
    return [
        show_stored(cell["transfer_gain"], sign="+"),
        cell_outcome(cell),
        _final(cell, "protected"),
        show_stored(cell["starts"]["protected"]["peak"]),
        _final(cell, "scratch"),
        _final(cell, "unprotected"),
        show_cost(Cost(**cell["cost"])),
    ]


def _benign_table(report: Mapping[str, Any]) -> Table:
    def final(cell: Mapping[str, Any], start: str) -> str:
        return _final(cell, start) if start in cell["starts"] else "-"

    return Table(
        title="Benign fine-tuning, worst first",
        note=f"Benign test accuracy in % after {count(report['epochs'], 'epoch')}, "
        f"{mean_over(report['seeds'])}. Trainability: protected less unprotected."
        f"{_stopped_note(report['benign'])}",
        columns=["attack", "domain", *STARTS, "trainability"],
        num_names=2,
        lines=[
            Line(
                [
                    cell["attack"],
                    cell["domain"],
                    *[final(cell, start) for start in STARTS],
                    show_stored(cell["trainability"], sign="+"),
                ]
            )
            for cell in report["benign"]
        ],
    )


def _final(cell: Mapping[str, Any], start: str) -> str:
    of_start = cell["starts"][start]
    return show_stored(of_start["final"]) + (_STOPPED if _has_stopped(of_start) else "")


def _has_stopped(of_start: Mapping[str, Any]) -> bool:
    return any(rows[-1].get("stopped") for rows in of_start["curve"]["seeds"])


def _stopped_note(cells: Sequence[Mapping[str, Any]]) -> str:
    has_stopped = any(_has_stopped(start) for cell in cells for start in cell["starts"].values())
    return f"{_STOPPED}: ended early in at least one seed." if has_stopped else ""
