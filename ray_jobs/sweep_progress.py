"""What a sweep says while it runs: a line for each trial that is over."""

import dataclasses
import logging
import time
from typing import Any

from ray import tune

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


class SweepProgress(tune.Callback):
    """Completes the record of each trial that Tune ends, and logs its line; runs in the driver."""

    def __init__(
        self, state: Location, *, shown: tuple[str, ...], num_trials: int, concurrent: int
    ) -> None:
        """Read and complete the records at ``state``; show the metrics ``shown``."""
        self._state, self._shown = state, shown
        self._num_trials, self._concurrent = num_trials, concurrent

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
        logger.info("%s", self.line(trial, list(records.values())), extra=PROGRESS)

    def line(self, trial: Trial, trials: list[Trial]) -> str:
        """Return the line of ``trial`` when these ``trials`` have begun."""
        over = [t for t in trials if t.state != RUNNING]
        best = ranked(over)[0]
        mean_seconds = sum(t.seconds.get("total", 0) for t in over) / len(over)
        left = (self._num_trials - len(over)) * mean_seconds / self._concurrent
        best_text = self._metrics(best) if best.state == FINISHED else "-"
        return (
            f"sweep {len(over)}/{self._num_trials}  {trial.trial_id}  {self._metrics(trial)}  "
            f"best {best_text}  eta {duration(left)}"
        )

    def _metrics(self, trial: Trial) -> str:
        if trial.state == FINISHED:
            return " ".join(f"{name} {percent(trial.metrics[name])}" for name in self._shown)
        return trial.state if trial.error is None else f"{trial.state} ({trial.error})"


def _last_line(error: str) -> str:
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[-1] if lines else "its process was lost"
