"""`ringfence sweep`: another job many times, each time with other values of some fields.

What is best is decided on validation images. Only what was picked is audited on test images, once.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import ray
from ray.tune.schedulers import TrialScheduler

from ray_jobs import audit_data, audit_model
from ray_jobs.audit_data import AuditData
from ray_jobs.audit_model import AuditModel
from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import connect
from ray_jobs.errors import JobError, UsageError
from ray_jobs.population import RATES
from ray_jobs.protect_model import ProtectModel
from ray_jobs.recipes import read_recipe, to_plain
from ray_jobs.runs import Run, begin, find_run
from ray_jobs.sweep_progress import SweepProgress
from ray_jobs.sweep_recipe import Sweep
from ray_jobs.sweep_records import FINISHED, Trial, ranked, read_trials
from ray_jobs.sweep_report import commit_sweep, sweep_table
from ray_jobs.sweep_space import (
    Space,
    as_grid,
    as_text,
    check_space,
    ends,
    find_space,
    own_values,
    with_values,
)
from ray_jobs.sweep_trials import SCORE, Plan, recipe_of, run_trial
from ray_jobs.swept_jobs import SWEPT_JOBS, Judge
from ray_jobs.tuning import (
    concurrent_trials,
    early_stopping,
    has_begun,
    population_based,
    run_trials,
    searcher,
)
from storage.blobs import open_blobs
from storage.commit import is_committed

_CONCURRENT: Final = "concurrent.json"
# Seconds between checkpoints that are made after so many rounds alone.
_NEVER: Final = 1e9
# The job that audits what a job makes.
_AUDITS: Final[dict[str, Callable[[Any], str]]] = {
    "protect-model": audit_model.run,
    "protect-data": audit_data.run,
}
_AUDIT_RECIPES: Final[dict[str, type[Any]]] = {
    "protect-model": AuditModel,
    "protect-data": AuditData,
}


@dataclass(frozen=True, kw_only=True)
class _WholeSweep:
    """All that decides a sweep: what is resumed must be this, not files that have changed since."""

    output: str
    sweep: dict[str, Any]
    base: dict[str, Any]
    space: dict[str, str]
    audit: dict[str, Any] | None


class _Opened(NamedTuple):
    base: Any
    space: Space
    audit: Any
    num_trials: int


def run(job: Sweep) -> str:
    """Run all trials, compare them, commit the comparison, and return its location.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: no trial was measured, or the audit of the winner failed.
    """
    opened = _open(job)
    this_run = find_run(_whole(job, opened), verb="sweep", parents=opened.base.parents())
    connect(opened.base.cluster)
    concurrent = _concurrent(job, opened.base.cluster, this_run)
    begin(this_run)
    open_blobs(this_run.state).put(_CONCURRENT, json.dumps(concurrent).encode())
    _run_trials(job, opened, this_run, concurrent)
    trials = ranked(read_trials(this_run.state))
    if not trials or trials[0].state != FINISHED:
        raise JobError(
            f"none of {len(trials)} trials was measured, the first because "
            f"{trials[0].error if trials else 'none began'}; expected at least one"
        )
    winner = recipe_of(trials[0], opened.base, output=this_run.output / "winner")
    audit = None if opened.audit is None else _audit(job, opened.audit, trials[0], this_run)
    commit_sweep(
        job,
        this_run,
        trials,
        opened.space,
        own=own_values(opened.base, opened.space),
        winner=winner,
        audit=audit,
    )
    return str(this_run.output)


def _open(job: Sweep) -> _Opened:
    swept = SWEPT_JOBS[job.job]
    base = swept.absolute(with_values(read_recipe(Path(job.recipe), swept.recipe), job.fixed))
    space = find_space(job.job, job.space, fields=job.fields)
    for name in job.fixed:
        if name in space:
            raise UsageError(f"fixed has {name}, which space {job.space} sets; expected it in one")
    check_space(base, space)
    if job.scheduler == "pbt":
        base = _as_population(job, base, space)
    num_trials = job.trials or math.prod(len(ends(name, space[name])) for name in as_grid(space))
    audit = None
    if job.audit is not None:
        audit = read_recipe(Path(job.audit), _AUDIT_RECIPES[job.job])
    return _Opened(base, space, audit, num_trials)


def _as_population(job: Sweep, base: ProtectModel, space: Space) -> ProtectModel:
    """``base`` with the checkpoints that trials go on from each other by."""
    for name in space:
        if name not in RATES:
            raise UsageError(
                f"scheduler is pbt, but space {job.space} sets {name}, which cannot change while a "
                f"model is protected; expected no more than {' and '.join(RATES)}"
            )
    rounds = base.sophon.rounds
    every = job.change_every or max(1, rounds // 4)
    if every >= rounds:
        raise UsageError(
            f"change_every is {every}, but sophon.rounds is {rounds}; expected a part of them"
        )
    cluster = dataclasses.replace(
        base.cluster,
        checkpoint_interval_rounds=every,
        checkpoint_interval_seconds=_NEVER,
        keep_checkpoints=rounds // every + 1,  # the one that is needed is not always the newest
    )
    return dataclasses.replace(base, cluster=cluster)


def _whole(job: Sweep, opened: _Opened) -> _WholeSweep:
    sweep = to_plain(job)
    for name in ("recipe", "audit", "output", "max_concurrent_trials"):
        del sweep[name]  # of the files the content counts, and no result depends on the last
    base = to_plain(opened.base)
    audit = None if opened.audit is None else to_plain(opened.audit)
    for recipe in filter(None, (base, audit)):
        del recipe["cluster"]
    return _WholeSweep(
        output=job.output,
        sweep=sweep,
        base=base,
        space={name: as_text(domain) for name, domain in opened.space.items()},
        audit=audit,
    )


def _concurrent(job: Sweep, cluster: ClusterConfig, this_run: Run) -> int:
    """Trials at a time: as many as there is room for, or as this sweep began with.

    More than there is room for would wait for each other's workers.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    room = concurrent_trials(nodes, cluster)
    wanted = min(room, job.max_concurrent_trials or room)
    if job.scheduler == "pbt" and wanted < (job.trials or 0):
        raise UsageError(
            f"scheduler is pbt and trials is {job.trials}, but {wanted} can run at a time, and "
            f"trials are compared that run side by side; expected at most {wanted}"
        )
    kept = open_blobs(this_run.state)
    if has_begun(this_run.state):
        concurrent: int = json.loads(kept.get(_CONCURRENT))
        if concurrent > room:
            raise UsageError(
                f"the sweep began with {concurrent} trials at a time, but the cluster has room for "
                f"{room}; expected a cluster like the one it began on (or remove {this_run.state})"
            )
        return concurrent
    return wanted


def _run_trials(job: Sweep, opened: _Opened, this_run: Run, concurrent: int) -> None:
    shared = Run(this_run.output, this_run.state / "shared", this_run.logs / "shared", {})
    judge = Judge(job.quick_audit, job.appropriator, job.max_original_drop, shared)
    scheduler, report_every = _scheduler(job, opened)
    is_population = job.scheduler == "pbt"
    plan = Plan(
        job.job, opened.base, this_run.output, this_run.state, judge, report_every, is_population
    )
    metrics = ["drop", "gain"] if job.objective == "pareto" else [SCORE]
    search, param_space = searcher(
        job.search,
        opened.space,
        first=own_values(opened.base, opened.space),
        metrics=metrics,
        num_trials=opened.num_trials,
        concurrent=concurrent,
        seed=job.seed,
    )

    def trial(fields: dict[str, Any]) -> None:
        run_trial(plan, fields)

    run_trials(
        trial,
        param_space=param_space,
        num_samples=job.trials or 1,
        search=search,
        scheduler=scheduler,
        max_failures=opened.base.cluster.max_failures,
        state=this_run.state,
        callback=SweepProgress(
            this_run.state,
            shown=SWEPT_JOBS[job.job].shown,
            num_trials=opened.num_trials,
            concurrent=concurrent,
            table_of=functools.partial(sweep_table, job),
        ),
    )


def _scheduler(job: Sweep, opened: _Opened) -> tuple[TrialScheduler | None, int | None]:
    """Return who compares trials while they run, and after how many rounds each."""
    rounds = SWEPT_JOBS[job.job].rounds
    if job.scheduler == "none" or rounds is None:
        return None, None
    if job.scheduler == "asha":
        return early_stopping(num_steps=rounds.number(opened.base)), 1
    every = opened.base.cluster.checkpoint_interval_rounds
    return population_based(opened.space, every=every), every


def _audit(job: Sweep, audit: Any, winner: Trial, this_run: Run) -> str:
    """Audit what the winner made on test images; return where its report is."""
    output = this_run.output / "audit"
    if not is_committed(output):  # else an interrupted sweep came that far
        recipe = dataclasses.replace(audit, protected=winner.location, output=str(output))
        _AUDITS[job.job](recipe)
    return str(output)
