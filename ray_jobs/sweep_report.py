"""What a sweep says at its end: every trial, best first, and the recipe of the best."""

import dataclasses
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final

import jinja2
import yaml
from rich.console import Console
from rich.table import Table

from ray_jobs.recipes import to_plain
from ray_jobs.reporting import duration, percent
from ray_jobs.runs import Run, provenance
from ray_jobs.sweep_recipe import Sweep
from ray_jobs.sweep_records import FINISHED, Trial, pareto_set
from ray_jobs.sweep_space import Space, is_logarithmic
from ray_jobs.swept_jobs import SWEPT_JOBS
from storage.commit import commit

logger = logging.getLogger(__name__)

SWEEP_KIND: Final = "sweep"
WINNER_PART: Final = "winner.yaml"


def commit_sweep(
    job: Sweep,
    this_run: Run,
    trials: Sequence[Trial],
    space: Space,
    *,
    own: dict[str, Any] | None,
    winner: Any,
    audit: str | None,
) -> None:
    """Publish what a sweep found at its output, and show it.

    Args:
        job: the sweep.
        this_run: its run.
        trials: best first; the first was measured.
        space: that they are from.
        own: values of the recipe that was swept; None where the space has others alone.
        winner: recipe of the first.
        audit: where its audit is.
    """
    table = _Table(job, trials)
    unchanged = next((trial for trial in trials if trial.fields == own), None)
    summary = _summary(job, trials, unchanged, audit)
    recipe = _winner_yaml(job, winner, trials[0])
    markdown = "\n".join([*summary, "", *table.markdown(), ""])
    report = {
        "job": job.job,
        "objective": job.objective,
        "winner": trials[0].trial_id,
        "unchanged": None if unchanged is None else unchanged.trial_id,
        "pareto_set": [trial.trial_id for trial in _pareto(job, trials)],
        "audit": audit,
        "trials": [dataclasses.asdict(trial) for trial in trials],
    }
    parts = {
        "sweep.json": json.dumps(report, indent=2).encode(),
        "sweep.md": markdown.encode(),
        "sweep.html": _page(job, trials, space, table, summary, recipe).encode(),
        WINNER_PART: recipe.encode(),
    }
    best = trials[0]
    description = {
        **provenance(this_run),
        "metrics": {"num_trials": len(trials), **_shown(job, best)},
        "parents": {**this_run.parents, "winner": best.location},
    }
    commit(this_run.output, parts, kind=SWEEP_KIND, description=description)
    if sys.stderr.isatty():
        for line in summary:
            logger.info("%s", line)
        Console(stderr=True).print(table.rich())
    else:
        logger.info("\n%s", markdown)


def sweep_table(job: Sweep, trials: Sequence[Trial]) -> Table:
    """Return ``trials``, at least one and the best first, as a terminal shows them."""
    return _Table(job, trials).rich()


def _shown(job: Sweep, trial: Trial) -> dict[str, float]:
    return {name: trial.metrics[name] for name in SWEPT_JOBS[job.job].shown}


def _pareto(job: Sweep, trials: Sequence[Trial]) -> list[Trial]:
    return pareto_set(trials, ("drop", "gain")) if job.job == "protect-model" else []


def _summary(
    job: Sweep, trials: Sequence[Trial], unchanged: Trial | None, audit: str | None
) -> list[str]:
    best = trials[0]
    counts = {state: sum(t.state == state for t in trials) for state in _states(trials)}
    lines = [
        f"{len(trials)} trials of {job.job}: "
        f"{', '.join(f'{number} {state}' for state, number in counts.items())}.",
        f"The best on validation images is {best.trial_id}: {_in_words(job, best)}.",
    ]
    if unchanged is best:
        lines.append("That is the recipe as it was: nothing that was tried is better.")
    elif unchanged is not None and unchanged.state == FINISHED:
        words = _in_words(job, unchanged)
        lines.append(f"The recipe as it was is {unchanged.trial_id}: {words}.")
    if best.metrics.get("drop", 0) > job.max_original_drop and job.job == "protect-model":
        lines.append(
            f"NONE kept the original accuracy within {percent(job.max_original_drop)}: the best is "
            "the one that came closest."
        )
    if audit is not None:
        lines.append(f"Its audit on test images is {audit}.")
    return lines


def _in_words(job: Sweep, trial: Trial) -> str:
    return ", ".join(f"{name} {percent(value)}" for name, value in _shown(job, trial).items())


def _states(trials: Sequence[Trial]) -> list[str]:
    return list(dict.fromkeys(trial.state for trial in trials))


def _winner_yaml(job: Sweep, winner: Any, trial: Trial) -> str:
    text = yaml.safe_dump(to_plain(winner), sort_keys=False)
    return f"# ringfence {job.job} --config winner.yaml\n#\n# Trial {trial.trial_id}.\n{text}"


class _Table:
    """Trials as rows of text."""

    def __init__(self, job: Sweep, trials: Sequence[Trial]) -> None:
        fields, self._shown = list(trials[0].fields), SWEPT_JOBS[job.job].shown
        names = _names(fields)
        self._has_changes = any(trial.rate_changes for trial in trials)
        changes = ["changes"] if self._has_changes else []
        self.columns = ["trial", *names, *changes, *self._shown, "state", "time"]
        self.rows = [[*self._cells(trial, fields)] for trial in trials]

    def _cells(self, trial: Trial, fields: Sequence[str]) -> list[str]:
        metrics: Mapping[str, Any] = trial.metrics
        return [
            trial.trial_id,
            *(_text(trial.fields[field]) for field in fields),
            *([_changes(trial)] if self._has_changes else []),
            *(percent(metrics.get(name)) for name in self._shown),
            trial.state if trial.error is None else f"{trial.state}: {trial.error}",
            duration(trial.seconds["total"]) if "total" in trial.seconds else "-",
        ]

    def markdown(self) -> list[str]:
        rows = [self.columns, ["---"] * len(self.columns), *self.rows]
        return [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]

    def rich(self) -> Table:
        table = Table(*self.columns, box=None)
        for index, row in enumerate(self.rows):
            table.add_row(*row, style="bold" if index == 0 else None)
        return table


def _names(fields: Sequence[str]) -> list[str]:
    """What the fields are called without the way to them, unless two then are called alike."""
    short = [[part for part in field.split(".") if not part.isdecimal()][-1] for field in fields]
    return short if len(set(short)) == len(short) else list(fields)


def _changes(trial: Trial) -> str:
    """What population-based training changed, in the order of the columns before."""
    each = [
        f"round {change['from_round']}: "
        f"{', '.join(_text(change[field.rsplit('.', 1)[-1]]) for field in trial.fields)}"
        for change in trial.rate_changes
    ]
    return "; ".join(each) or "-"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _page(
    job: Sweep,
    trials: Sequence[Trial],
    space: Space,
    table: _Table,
    summary: Sequence[str],
    recipe: str,
) -> str:
    # Imported here: matplotlib takes seconds that no other command should spend.
    from ray_jobs.sweep_charts import (
        field_importance,
        importance_chart,
        slice_chart,
        trade_chart,
    )

    measured = [trial for trial in trials if trial.state == FINISHED]
    metric = SWEPT_JOBS[job.job].shown[0]
    best, importance = _pareto(job, trials), field_importance(measured)
    kinds = ["best", *("" if trial.state == FINISHED else "over" for trial in trials[1:])]
    template = jinja2.Environment(autoescape=True, trim_blocks=True).from_string(
        files("ray_jobs").joinpath("sweep.html.jinja").read_text()
    )
    return template.render(
        title=f"Sweep of {job.job}",
        summary=summary,
        trade=trade_chart(measured, best, x="drop", y="gain", limit=job.max_original_drop)
        if best
        else None,
        metric=metric,
        slices=[
            slice_chart(measured, field, metric, is_logarithmic=is_logarithmic(domain))
            for field, domain in space.items()
        ],
        importance=importance_chart(importance) if importance else None,
        columns=table.columns,
        rows=[{"kind": kind, "cells": row} for kind, row in zip(kinds, table.rows, strict=True)],
        winner=recipe,
    )
