"""What a sweep shows while it runs: all trials on a terminal, elsewhere a line for each in turn."""

import atexit
import dataclasses
import logging
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ray import tune
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from ray_jobs.reporting import duration, percent
from ray_jobs.sweep_records import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    Trial,
    ranked,
    read_trials,
    write_trial,
)
from ray_jobs.terminal import PROGRESS
from storage.location import Location

logger = logging.getLogger(__name__)


# Trials that began are read from the sweep's storage, a request each.
_REDRAW_SECONDS: Final = 10.0


class SweepProgress(tune.Callback):
    """Completes the record of each trial that Tune ends, and shows it; runs in the driver."""

    def __init__(
        self,
        state: Location,
        *,
        shown: tuple[str, ...],
        num_trials: int,
        concurrent: int,
        table_of: Callable[[Sequence[Trial]], Table],
    ) -> None:
        """Read and complete the records at ``state``; show the metrics ``shown``.

        Args:
            state: of the sweep's run.
            shown: metrics that a line has of a trial.
            num_trials: that there will be.
            concurrent: trials at a time.
            table_of: trials, the best first, as a terminal shows them.
        """
        self._state, self._shown, self._table_of = state, shown, table_of
        self._num_trials, self._concurrent = num_trials, concurrent
        self._live: Live | None = None
        self._drawn = -math.inf

    def setup(self, *arguments: object, **info: object) -> None:
        """Begin to draw, on a terminal."""
        del arguments, info
        if sys.stderr.isatty():
            self._live = Live(console=Console(stderr=True), auto_refresh=False)
            self._live.start()
            atexit.register(self._live.stop)  # it hides the cursor, and an interrupt ends it too

    def on_step_end(self, iteration: int, trials: list[Any], **info: object) -> None:
        """Draw the table anew, now and then."""
        del iteration, trials, info
        if self._live is not None and time.monotonic() - self._drawn > _REDRAW_SECONDS:
            self._draw(self._live, read_trials(self._state))

    def on_experiment_end(self, trials: list[Any], **info: object) -> None:
        """Draw no more; the whole table follows."""
        del trials, info
        if self._live is not None:
            self._live.update("", refresh=True)
            self._live.stop()

    def _draw(self, live: Live, begun: Sequence[Trial]) -> None:
        self._drawn = time.monotonic()
        if begun:
            live.update(self._drawing(ranked(begun)), refresh=True)

    def _drawing(self, trials: Sequence[Trial]) -> Group:
        """The trials that have begun, best first, and below them the best and the time left."""
        over = [trial for trial in trials if trial.state != RUNNING]
        outlook = f"  {self._outlook(over)}" if over else ""
        return Group(self._table_of(trials), f"sweep {len(over)}/{self._num_trials}{outlook}")

    def on_trial_complete(
        self, iteration: int, trials: list[Any], trial: Any, **info: object
    ) -> None:
        """Hear of a trial that is measured, or that the scheduler stopped."""
        del iteration, trials, info
        self._over(trial, otherwise=STOPPED)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: object) -> None:
        """Hear of a trial that failed, or whose process was lost too often."""
        del iteration, trials, info
        self._over(trial, otherwise=FAILED)

    def _over(self, tune_trial: Any, *, otherwise: str) -> None:
        records = {trial.trial_id: trial for trial in read_trials(self._state)}
        trial = records.get(tune_trial.trial_id) or Trial(
            trial_id=tune_trial.trial_id,
            state=RUNNING,
            fields=dict(tune_trial.config),
            began=time.time(),
        )
        if trial.state == RUNNING:
            seconds = {"total": time.time() - trial.began}
            error = _last_line(tune_trial.get_error() or "") if otherwise == FAILED else None
            trial = dataclasses.replace(trial, state=otherwise, error=error, seconds=seconds)
            write_trial(self._state, trial)
            records[trial.trial_id] = trial
        if self._live is None:
            logger.info("%s", self.line(trial, list(records.values())), extra=PROGRESS)
        else:
            self._draw(self._live, list(records.values()))

    def line(self, trial: Trial, trials: list[Trial]) -> str:
        """Return the line of ``trial`` when these ``trials`` have begun."""
        over = [t for t in trials if t.state != RUNNING]
        return (
            f"sweep {len(over)}/{self._num_trials}  {trial.trial_id}  {self._metrics(trial)}  "
            f"{self._outlook(over)}"
        )

    def _outlook(self, over: Sequence[Trial]) -> str:
        """The best of the trials that are ``over``, and how long the others will take."""
        best = ranked(over)[0]
        mean_seconds = sum(t.seconds.get("total", 0) for t in over) / len(over)
        left = (self._num_trials - len(over)) * mean_seconds / self._concurrent
        best_text = self._metrics(best) if best.state == FINISHED else "-"
        return f"best {best_text}  eta {duration(left)}"

    def _metrics(self, trial: Trial) -> str:
        if trial.state == FINISHED:
            return " ".join(f"{name} {percent(trial.metrics[name])}" for name in self._shown)
        return trial.state if trial.error is None else f"{trial.state} ({trial.error})"


def _last_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else "its process was lost"
