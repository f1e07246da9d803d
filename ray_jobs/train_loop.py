"""A train loop on a worker: run an algorithm's generator, report, checkpoint, resume."""

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ray.train
import torch

from protection.training import NonFiniteError
from protection.workers import Workers
from ray_jobs.cluster import FAILURE, quiet_worker
from ray_jobs.reporting import ROWS
from storage.checkpoints import load_training_state, save_training_state
from storage.errors import StorageError, UnavailableError

# A report waits for the controller; short rounds share one.
_REPORT_SECONDS = 1.0


class Resumable(Protocol):
    """The state of an algorithm between rounds."""

    def state_dict(self) -> dict[str, object]:
        """Tensors and numbers, nested."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        ...


def restore(state: Resumable) -> None:
    """Load the newest checkpoint of the run into ``state``, if there is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state.load_state_dict(load_training_state(Path(directory)))


def report_rounds(
    rounds: Iterator[NamedTuple],
    state: Resumable | None,
    *,
    num_rounds: int,
    first_round: int,
    checkpoint_interval_seconds: float,
    workers: Workers,
    device: torch.device,
) -> None:
    """Run ``rounds`` to their end; report their metrics, and checkpoints of ``state`` when due.

    ``state`` is None where each round keeps its own result, so that there is nothing to checkpoint.
    Every worker reports the same number of times, because `ray.train.report` is a barrier: rank
    0's clock decides when.
    """
    started = last_report = last_checkpoint = time.monotonic()
    last_round = started
    rows: list[dict[str, Any]] = []
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
            _report(rows, state if is_checkpoint_due else None, done + first_round, workers)
            rows = []
            last_report = time.monotonic()
            last_checkpoint = last_report if is_checkpoint_due else last_checkpoint


def _report(
    rows: list[dict[str, Any]], state: Resumable | None, num_done: int, workers: Workers
) -> None:
    metrics = {ROWS: rows if workers.rank == 0 else []}
    if state is None or workers.rank != 0:
        name = None if state is None else f"round-{num_done:06d}"
        ray.train.report(metrics, checkpoint_dir_name=name)
        return
    with tempfile.TemporaryDirectory() as directory:
        save_training_state(Path(directory), state.state_dict())
        checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report(
            metrics, checkpoint=checkpoint, checkpoint_dir_name=f"round-{num_done:06d}"
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
