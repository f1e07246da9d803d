"""A model audit as it is shown."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from protection.audit.scores import STARTS, Cost, Estimate
from ray_jobs.reporting import percent
from ray_jobs.reports.heat_maps import gain_maps
from ray_jobs.reports.model_report import cheapness
from ray_jobs.reports.views import Chart, Line, Score, Table, View, chart_series
from ray_jobs.reports.wording import (
    count,
    list_seeds,
    mean_over,
    points,
    show,
    show_cost,
    show_noise,
    show_stored,
)

# The worst, and as many again as fill two rows; more would repeat the table.
_NUM_CHARTS: Final = 7
# Beside what ended before its last epoch.
_STOPPED: Final = " †"

_LINES: Final = {
    "protected": "from the protected model",
    "unprotected": "from the model as it was before",
    "scratch": "from random weights",
}
_TERMS: Final = {
    "Attack": "One way of fine-tuning: what is trained, by which optimizer and settings.",
    "Restricted domain": "Images that the model must not be fine-tuned to.",
    "Original accuracy": "Accuracy on the images that the model was made for. What protecting the "
    "model cost of it is its intactness.",
    "Transfer gain": "Accuracy that fine-tuning reaches from the protected model, less what the "
    "same training reaches from random weights. At most 0: the protection held.",
    "Adversary's cost": "Epochs that the protected model needs to reach the last accuracy of "
    "training from scratch, divided by those that scratch needs itself; the median over seeds.",
    "Benign trainability": "Accuracy that fine-tuning to an unrelated domain reaches from the "
    "protected model, less what it reaches from the unprotected one. At 0 nothing is lost.",
    "±": "Half of the 95 % interval of the mean over seeds (Student's t). Noise: the interval of a "
    "difference includes 0.",
}


def model_view(report: Mapping[str, Any]) -> View:
    """Return what is shown of a model audit's ``report``."""
    cells, benign, headline = report["cells"], report["benign"], report["headline"]
    return View(
        kind="Model audit",
        verdict=_verdict(report),
        outcome="held" if headline["num_cells_held"] == headline["num_cells"] else "failed",
        purpose=f"fine-tuning to {' and to '.join(_domains(cells))}",
        scope=_scope(report),
        scores=_scores(report),
        tables=[_cells_table(report), *([_benign_table(report)] if benign else [])],
        heat_maps=gain_maps(cells),
        charts=[
            Chart(
                title=_name(cell, cells),
                note=f"{show_stored(cell['transfer_gain'], sign='+')} points above scratch",
                series=chart_series(cell["starts"]),
            )
            for cell in cells[:_NUM_CHARTS]
        ],
        lines=_LINES,
        not_tested=report["not_tested"],
        terms=_TERMS,
    )


def _domains(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(cell["domain"]) for cell in cells))


def _name(cell: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The attack, and its domain where there are several."""
    return f"{cell['attack']} on {cell['domain']}" if len(_domains(cells)) > 1 else cell["attack"]


def _tried(cells: Sequence[Mapping[str, Any]]) -> str:
    domains = _domains(cells)
    return count(len(cells), "attack") + (f" on {len(domains)} domains" if domains[1:] else "")


def _verdict(report: Mapping[str, Any]) -> str:
    cells, headline = report["cells"], report["headline"]
    failed = headline["num_cells"] - headline["num_cells_held"]
    tried = _tried(cells)
    outcome = f"did not hold under {failed} of {tried}" if failed else f"held under {tried} tried"
    gain = Estimate(**cells[0]["transfer_gain"])
    side = "above" if gain.mean > 0 else "below"
    return (
        f"The protection {outcome}: the worst, {_name(cells[0], cells)}, ends "
        f"{show(gain._replace(mean=abs(gain.mean)))} points {side} training from scratch"
        f"{show_noise(cells[0]['is_clear'])}."
    )


def _scope(report: Mapping[str, Any]) -> str:
    return (
        f"Fine-tuned to {' and to '.join(_domains(report['cells']))} for "
        f"{count(report['epochs'], 'epoch')}, from the protected model, the unprotected one and "
        f"random weights: {_tried(report['cells'])}, {list_seeds(report['seeds'])}."
    )


def _scores(report: Mapping[str, Any]) -> list[Score]:
    headline, worst = report["headline"], report["cells"][0]
    gain = show_stored(worst["transfer_gain"], sign="+")
    unclear = headline["num_cells_unclear"]
    original = headline["original_accuracy"]
    change = points(-headline["original_accuracy_drop"], sign="+")
    return [
        Score("Worst transfer gain", gain, "points", _name(worst, report["cells"])),
        Score(
            "Attacks held off",
            f"{headline['num_cells_held']} of {headline['num_cells']}",
            "",
            f"{unclear} of {headline['num_cells']} within the noise" if unclear else "",
        ),
        _cost_score(report["cells"]),
        Score(
            "Original accuracy",
            points(original["protected"]),
            "%",
            f"{change} points from {percent(original['unprotected'])} unprotected",
        ),
        _benign_score(report["benign"]),
    ]


def _cost_score(cells: Sequence[Mapping[str, Any]]) -> Score:
    cheapest = min(cells, key=lambda cell: cheapness(cell["cost"]))
    cost = Cost(**cheapest["cost"])
    note = f"epochs to what scratch reaches, over scratch's: {_name(cheapest, cells)}"
    unit = "epochs" if cost.is_bound else ""
    return Score("Adversary's cost, least", show_cost(cost), unit, note)


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
    names = ["attack", "domain"] if len(_domains(cells)) > 1 else ["attack"]
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
    outcome = "held" if cell["holds"] else "FAILED"
    return [
        show_stored(cell["transfer_gain"], sign="+"),
        f"{outcome} (noise)" if cell["is_clear"] is False else outcome,
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
