"""One trial of a sweep: the swept job itself, then what it is judged by.

Runs in a process of Ray Tune that has no CPU of its own: the job's workers and the tasks that
measure have theirs. A trial that died is continued: the job finds its own run again.
"""

import dataclasses
import hashlib
import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

from ray import tune

from ray_jobs.connection import connect
from ray_jobs.errors import JobError
from ray_jobs.population import Standing, continued, given_standing, report_standing, take_over
from ray_jobs.reporting import METRICS_FILE, NOTICE, Row, appended_rows
from ray_jobs.runs import Run, logs_beside
from ray_jobs.sweep_records import (
    FAILED,
    FINISHED,
    RUNNING,
    STOPPED,
    UNMEASURED,
    Trial,
    find_trial,
    write_trial,
)
from ray_jobs.sweep_space import with_values
from ray_jobs.swept_jobs import SWEPT_JOBS, Judge
from storage.commit import is_committed
from storage.errors import StorageError
from storage.location import Location, parse_location

SCORE: Final = "score"
PROGRESS: Final = "progress"
STEP: Final = "step"


class Plan(NamedTuple):
    """What all trials of a sweep have in common; travels to them."""

    job: str
    base: Any
    """Recipe of the job, with absolute paths."""
    output: Location
    """Of the sweep: trials are kept below it."""
    state: Location
    """Of the sweep's run."""
    judge: Judge
    report_every: int | None
    """Rounds after which the scheduler hears of a run; None: it need not."""
    is_population: bool
    """Whether trials go on from each other."""


def run_trial(plan: Plan, sampled: Mapping[str, Any]) -> None:
    """Run one trial in Ray Tune's process, keep its record, and report its metrics there.

    One that fails says so in its record, and to Tune that it is worse than any: an exception would
    make Tune try again, which is for processes that were lost.
    """
    trial_id = tune.get_context().get_trial_id()
    trial = find_trial(plan.state, trial_id)
    if trial is None:
        # Samplers draw numbers of numpy, which JSON does not have.
        fields = {name: getattr(v, "item", lambda v=v: v)() for name, v in sampled.items()}
        trial = Trial(trial_id=trial_id, state=RUNNING, fields=fields, began=time.time())
        write_trial(plan.state, trial)
    # Another state: the driver died before Tune had heard of it.
    if trial.state == RUNNING:
        standing = given_standing() if plan.is_population else None
        if standing is not None:
            trial = continued(trial, standing, sampled)
            write_trial(plan.state, trial)
        try:
            trial = carry_out(plan, trial, standing)
        except (JobError, ValueError, StorageError) as error:
            seconds = {"total": time.time() - trial.began}
            trial = dataclasses.replace(trial, state=FAILED, error=str(error), seconds=seconds)
        written = find_trial(plan.state, trial_id)
        if written is not None and written.state == STOPPED:
            return  # by the scheduler: what failed since is this process coming down
        write_trial(plan.state, trial)
    shown = SWEPT_JOBS[plan.job].shown
    if trial.state == FINISHED:
        tune.report({SCORE: trial.score, **{name: trial.metrics[name] for name in shown}})
    else:
        tune.report({SCORE: UNMEASURED, **dict.fromkeys(shown, 1.0)})


def carry_out(plan: Plan, trial: Trial, standing: Standing | None) -> Trial:
    """Run the job with the trial's fields, if it has not run, and measure what it made.

    Where there is a ``standing``, its own or another's, the run goes on from there.

    Raises:
        JobError, ValueError, StorageError: it failed.
    """
    swept, began = SWEPT_JOBS[plan.job], time.time()
    output = plan.output / f"trials/{_folder(trial)}"
    job = recipe_of(trial, plan.base, output=output)
    connect(job.cluster)
    state = output.sibling(".run")
    rows: list[Row] = []
    if swept.run is not None and not is_committed(output):
        if standing is not None:
            take_over(standing, state)
        here = Standing(
            state=str(state),
            num_done=0 if standing is None else standing.num_done,
            fields=trial.fields,
            rate_changes=trial.rate_changes,
        )
        with _rows_of(here, plan) as rows:
            swept.run(job)
    job_done = time.time()
    own = Run(output, state / "measured", logs_beside(state) / "measured", {})
    metrics = swept.measure(job, str(output), plan.judge, own)
    score = swept.score(metrics, plan.judge.max_original_drop)
    if not math.isfinite(score):
        raise JobError(f"score is {score}; expected a finite number")
    return dataclasses.replace(
        trial,
        state=FINISHED,
        metrics=metrics,
        score=score,
        seconds=_durations(rows, began=began, job_done=job_done),
        location=str(output) if swept.run is not None else None,
    )


def recipe_of(trial: Trial, base: Any, *, output: Location) -> Any:
    """The recipe by which ``trial`` makes its ``output``: that of the sweep with its own values."""
    values = {**trial.fields, "output": str(output)}
    if trial.rate_changes:
        values["sophon.rate_changes"] = trial.rate_changes
    return with_values(base, values)


def _folder(trial: Trial) -> str:
    """Name of the place of what ``trial`` makes: another recipe has another output."""
    if not trial.rate_changes:
        return trial.trial_id
    line = json.dumps([trial.fields, trial.rate_changes], sort_keys=True)
    return f"{trial.trial_id}-{hashlib.sha256(line.encode()).hexdigest()[:8]}"


@contextmanager
def _rows_of(here: Standing, plan: Plan) -> Iterator[list[Row]]:
    """Collect the rows that a run in the body writes; report them to Tune if the plan says so.

    In a thread, because the job waits for its workers in this one.
    """
    logs = logs_beside(parse_location(here.state))
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / METRICS_FILE
    path.touch()
    rows: list[Row] = []
    stop = threading.Event()

    def follow() -> None:
        # From the first on: a run that is continued tells the scheduler again where it was.
        shown: list[float] = []
        for row in appended_rows(path, 0, until=stop.is_set):
            if NOTICE not in row:
                rows.append(row)
                if plan.report_every is not None:
                    _report(row, shown, here, plan)

    # A trial that the scheduler stops must not wait for it.
    thread = threading.Thread(target=follow, name="rows", daemon=True)
    thread.start()
    try:
        yield rows
    finally:
        stop.set()
        thread.join()


def _report(row: Row, shown: list[float], here: Standing, plan: Plan) -> None:
    """Tell the scheduler what rounds have ``shown`` since it heard last, this one among them."""
    rounds, every = SWEPT_JOBS[plan.job].rounds, plan.report_every
    assert rounds is not None  # the sweep refuses a scheduler without them
    assert every is not None
    num_done = row[rounds.step] + 1
    if num_done <= here.num_done:
        return  # of another run, which has reported it
    progress = rounds.progress(row, plan.judge.max_original_drop)
    if progress is not None:
        shown.append(progress)
    if num_done % every or not shown:
        return
    metrics = {SCORE: UNMEASURED, PROGRESS: sum(shown) / len(shown), STEP: num_done}
    shown.clear()
    if not plan.is_population:
        tune.report(metrics)
    elif num_done < rounds.number(plan.base):
        report_standing(metrics, dataclasses.replace(here, num_done=num_done))


def _durations(rows: list[Row], *, began: float, job_done: float) -> dict[str, float]:
    """Where the time of this attempt went, in seconds."""
    now = time.time()
    rows = [row for row in rows if row["time"] >= began]
    seconds = {"total": now - began, "measuring": now - job_done}
    if rows:
        rounds = sum(row["seconds"] for row in rows)
        before = rows[0]["time"] - rows[0]["seconds"] - began
        rest = job_done - began - before - rounds
        seconds |= {"starting": before, "rounds": rounds, "ending": rest}
    return seconds
