"""A denoiser's audit as it is shown: mean squared errors, the greater the better protected."""

from collections.abc import Mapping
from typing import Any, Final

from protection.audit.scores import STARTS, Cost, Estimate
from ray_jobs.reporting import Row
from ray_jobs.reports.attack_views import (
    LINES,
    TERMS,
    cell_outcome,
    cost_score,
    held_score,
    name_of,
    names_of,
    overall,
    purpose,
    scope,
    verdict,
)
from ray_jobs.reports.views import NUM_CHARTS, Chart, Line, Score, Table, View, chart_series
from ray_jobs.reports.wording import NOISE, count, mean_over, show_cost

DENOISER_AUDIT: Final = "denoiser-audit"
_DISTANCES: Final = ("fid", "kid")
_TERMS: Final = {
    **TERMS,
    "Error": "Mean squared error of the predicted noise. Noise has variance 1: a model that "
    "predicts none has an error of 1. Noise levels are drawn evenly from the whole schedule.",
    "Gain": "Error of training from scratch, less that of fine-tuning the protected model. At most "
    "0: the protection held.",
    "Adversary's cost": "Epochs that the protected model needs to reach the last error of training "
    "from scratch, divided by those that scratch needs itself; the median over seeds.",
    "FID, KID": "How far the statistics of drawn images are from those of real ones, by the "
    "features of the network that the recipe names; the less, the more alike.",
    "±": NOISE,
}


def denoiser_view(report: Mapping[str, Any]) -> View:
    """Return what is shown of the ``report`` of a denoiser's audit."""
    cells = report["cells"]
    return View(
        kind="Diffusion model audit",
        verdict=_verdict(report),
        outcome=overall(report),
        purpose=purpose(cells),
        scope=scope(report, count(len(cells), "attack")),
        scores=_scores(report),
        tables=[
            _cells_table(report),
            *([_benign_table(report)] if report["benign"] else []),
            _levels_table(report),
        ],
        heat_maps=[],
        charts=[
            Chart(
                title=name_of(cell, cells),
                note=f"{_signed(cell['transfer_gain']['mean'])} below scratch",
                series=chart_series(cell["starts"], shown=lambda accuracy: 1 - accuracy),
                is_error=True,
            )
            for cell in cells[:NUM_CHARTS]
        ],
        lines=LINES,
        not_tested=report["not_tested"],
        terms=_TERMS,
        picture_title="What the models draw",
        picture_words=f"Images drawn by the unprotected and the protected model, and by each start "
        f"after the same fine-tuning, {name_of(cells[0], cells)}; each column begins with the same "
        "noise.",
    )


def last_row(cell: Mapping[str, Any], start: str) -> Row:
    """What was measured after the last epoch, with the first seed."""
    row: Row = cell["starts"][start]["curve"]["seeds"][0][-1]
    return row


def _signed(error: float) -> str:
    return f"{round(error, 3) + 0.0:+.3f}"


def _show(error: Estimate, *, sign: str = "") -> str:
    margin = "" if error.margin is None else f" ± {error.margin:.3f}"
    return f"{round(error.mean, 3) + 0.0:{sign}.3f}{margin}"


def _error(cell: Mapping[str, Any], start: str, measured: str = "final") -> str:
    accuracy = Estimate(**cell["starts"][start][measured])
    return _show(accuracy._replace(mean=1 - accuracy.mean))


def _verdict(report: Mapping[str, Any]) -> str:
    cells = report["cells"]
    gain = Estimate(**cells[0]["transfer_gain"])
    side = "below" if gain.mean > 0 else "above"
    error = _show(gain._replace(mean=abs(gain.mean)))
    ends = f"with an error {error} {side} that of training from scratch"
    return verdict(report, count(len(cells), "attack"), ends=ends)


def _scores(report: Mapping[str, Any]) -> list[Score]:
    headline, cells = report["headline"], report["cells"]
    worst = cells[0]
    original, growth = headline["original_error"], headline["original_error_growth"]
    return [
        Score(
            "Restricted error, worst attack",
            _error(worst, "protected"),
            "",
            f"scratch {_error(worst, 'scratch')}, unprotected {_error(worst, 'unprotected')}: "
            f"{name_of(worst, cells)}",
        ),
        held_score(report, "the protected model ends with an error of at least scratch's"),
        cost_score(cells),
        Score(
            "Original error",
            f"{original['protected']:.3f}",
            "",
            f"{100 * growth:+.1f} % from {original['unprotected']:.3f} unprotected"
            f"{_distances_note(report['original'])}",
        ),
    ]


def _distances_note(rows: Mapping[str, Row]) -> str:
    shown = [
        f"{name.upper()} {rows['protected'][name]:.3g}, unprotected {rows['unprotected'][name]:.3g}"
        for name in _DISTANCES
        if name in rows["protected"]
    ]
    return "".join(f"; {each}" for each in shown)


def _cells_table(report: Mapping[str, Any]) -> Table:
    cells = report["cells"]
    names = names_of(cells)
    found = [name for name in _DISTANCES if name in last_row(cells[0], "protected")]
    columns = ["gain", "outcome", "protected", "its least", "scratch", "unprotected", "cost"]
    return Table(
        title="Every attack, worst first",
        note=f"Restricted error on test images after {count(report['epochs'], 'epoch')}, "
        f"{mean_over(report['seeds'])}. Gain: scratch less protected. Cost: epochs to what scratch "
        "reaches, over scratch's own."
        + (" FID and KID: protected, scratch, unprotected, with the first seed." if found else ""),
        columns=[*names, *columns, *(name.upper() for name in found)],
        num_names=len(names),
        lines=[
            Line(
                [
                    *[cell[name] for name in names],
                    *_values(cell),
                    *[_by_start(cell, name) for name in found],
                ],
                is_bad=not cell["holds"],
            )
            for cell in cells
        ],
    )


def _values(cell: Mapping[str, Any]) -> list[str]:
    return [
        _show(Estimate(**cell["transfer_gain"]), sign="+"),
        cell_outcome(cell),
        _error(cell, "protected"),
        _error(cell, "protected", "peak"),
        _error(cell, "scratch"),
        _error(cell, "unprotected"),
        show_cost(Cost(**cell["cost"])),
    ]


def _by_start(cell: Mapping[str, Any], name: str) -> str:
    starts = ("protected", "scratch", "unprotected")
    return ", ".join(f"{last_row(cell, start)[name]:.3g}" for start in starts)


def _benign_table(report: Mapping[str, Any]) -> Table:
    return Table(
        title="Benign fine-tuning, worst first",
        note=f"Benign error on test images after {count(report['epochs'], 'epoch')}, "
        f"{mean_over(report['seeds'])}.",
        columns=["attack", "domain", *STARTS],
        num_names=2,
        lines=[
            Line([cell["attack"], cell["domain"], *[_error(cell, start) for start in STARTS]])
            for cell in report["benign"]
        ],
    )


def _levels_table(report: Mapping[str, Any]) -> Table:
    worst, original = report["cells"][0], report["original"]
    rows = {
        **{f"restricted, fine-tuned, {start}": last_row(worst, start) for start in STARTS},
        **{f"original, {start}": original[start] for start in ("protected", "unprotected")},
    }
    errors = {name: row["error_by_timestep"] for name, row in rows.items()}
    num_bins, total = len(errors[f"original, {STARTS[0]}"]), report["num_timesteps"]
    return Table(
        title="Error by noise level",
        note=f"Of test images, by timestep, the least noise first. Restricted: under the worst "
        f"attack, {name_of(worst, report['cells'])}, with the first seed.",
        columns=[
            "images and model",
            *(f"from {total * part // num_bins}" for part in range(num_bins)),
        ],
        num_names=1,
        lines=[Line([name, *(f"{e:.3f}" for e in row)]) for name, row in errors.items()],
    )
