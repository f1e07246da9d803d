"""A train loop on a worker: run an algorithm's generator, report, checkpoint, resume."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray.train
import torch

from protection.training import NonFiniteError
from protection.workers import Workers
from ray_jobs.cluster import FAILURE, quiet_worker
from ray_jobs.reporting import ROWS
from ray_jobs.run_checkpoints import (
    FROM_THE_START,
    Place,
    Report,
    Resumable,
    Resumed,
    report_checkpoint,
)
from ray_jobs.runs import Run
from storage.errors import StorageError, UnavailableError

# A report waits for the controller; short rounds share one.
_REPORT_SECONDS = 1.0
_REPORTS_IN_A_CHECKPOINT = 4


def report_rounds(
    rounds: Iterator[NamedTuple],
    state: Resumable | None,
    *,
    this_run: Run,
    num_rounds: int,
    first_round: int,
    checkpoint_interval_seconds: float,
    workers: Workers,
    device: torch.device,
    resumed: Resumed = FROM_THE_START,
) -> None:
    """Run ``rounds`` to their end; report their metrics, and checkpoints of ``state`` when due.

    ``state`` is None where each round keeps its own result, so that there is nothing to checkpoint.
    ``resumed`` is what `restore` found; its rows are reported before those of the first round.
    Every worker reports the same number of times, because `ray.train.report` is a barrier: rank
    0's clock decides when.
    """
    started = last_report = last_checkpoint = time.monotonic()
    last_round = started
    rows = list(resumed.rows)
    reports = deque[Report](maxlen=_REPORTS_IN_A_CHECKPOINT)
    for done, metrics in enumerate(rounds, start=1):
        now = time.monotonic()
        left = num_rounds - first_round - done
        rows.append(
            {
                **metrics._asdict(),
                "seconds": now - last_round,
                "eta_seconds": left * (now - started) / done,
                "num_rounds": num_rounds,
                "time": time.time(),
            }
        )
        last_round = now
        is_checkpoint_due = (
            state is not None and now - last_checkpoint >= checkpoint_interval_seconds
        )
        is_report_due = is_checkpoint_due or done == 1 or left == 0
        is_report_due = is_report_due or now - last_report >= _REPORT_SECONDS
        decision = torch.zeros(2, dtype=torch.float64, device=device)
        if workers.rank == 0:
            decision += torch.tensor([is_report_due, is_checkpoint_due], device=device)
        workers.sum_in_place([decision])
        is_report_due, is_checkpoint_due = (flag > 0 for flag in decision.tolist())
        if is_report_due:
            place = Place(done + first_round, resumed.attempt)
            reports.append(Report(place.num_done, rows))
            _report(list(reports), state if is_checkpoint_due else None, place, this_run, workers)
            rows = []
            last_report = time.monotonic()
            last_checkpoint = last_report if is_checkpoint_due else last_checkpoint


def _report(
    reports: list[Report],
    state: Resumable | None,
    place: Place,
    this_run: Run,
    workers: Workers,
) -> None:
    # On every worker: a group puts together what its workers have in parts.
    kept = None if state is None else state.state_dict()
    if kept is not None and workers.rank == 0:
        report_checkpoint(reports, kept, place, this_run)
        return
    # Every worker must name the checkpoint, though rank 0 alone has one.
    name = None if state is None else place.name
    ray.train.report(
        {ROWS: reports[-1].rows if workers.rank == 0 else []}, checkpoint_dir_name=name
    )


def failing_clearly(loop: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run ``loop``; what a restart would only repeat is returned, so that Ray does not retry."""
    quiet_worker()
    try:
        return loop()
    except NonFiniteError as error:  # raised from reduced numbers, so on every worker
        return {FAILURE: str(error)}
    except (ValueError, StorageError) as error:
        is_alone = ray.train.get_context().get_world_size() == 1
        if is_alone and not isinstance(error, UnavailableError):
            return {FAILURE: str(error)}
        raise  # the others wait for this worker in an all-reduce: only its failure frees them
