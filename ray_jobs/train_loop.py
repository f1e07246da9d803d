"""A train loop on a worker: run an algorithm's generator, report, checkpoint, resume."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import ray.train
import ray.util
import torch

from protection.training import NonFiniteError
from protection.workers import Workers
from ray_jobs.cluster import FAILURE, ClusterConfig
from ray_jobs.errors import HopelessError, full_disk
from ray_jobs.machine import prepare, quiet_worker
from ray_jobs.reporting import NOTICE, ROWS
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
_REPORT_SECONDS: Final = 1.0
_REPORTS_IN_A_CHECKPOINT: Final = 4
# While a machine is about to go: what is done until then is lost from its last checkpoint on.
_NOTICE_INTERVAL_SECONDS: Final = 10.0


def report_rounds(
    rounds: Iterator[NamedTuple],
    state: Resumable | None,
    *,
    this_run: Run,
    num_rounds: int,
    first_round: int,
    cluster: ClusterConfig,
    workers: Workers,
    device: torch.device,
    resumed: Resumed = FROM_THE_START,
) -> None:
    """Run ``rounds`` to their end; report their metrics, and checkpoints of ``state`` when due.

    ``state`` is None where each round keeps its own result, so that there is nothing to checkpoint.
    ``resumed`` is what `restore` found; its rows are reported before those of the first round.
    """
    started = last_round = time.monotonic()
    schedule = _Schedule(cluster, has_state=state is not None, workers=workers, device=device)
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
        due = schedule.after_a_round(is_last=left == 0)
        if due.notice is not None:
            rows.insert(-1, {NOTICE: due.notice})  # the last row is a round's, see run_checkpoints
        if due.report:
            place = Place(done + first_round, resumed.attempt)
            reports.append(Report(place.num_done, rows))
            _report(list(reports), state if due.checkpoint else None, place, this_run, workers)
            rows = []
            schedule.reported(due)


class _Due(NamedTuple):
    """What is to be done after a round."""

    report: bool
    checkpoint: bool
    notice: str | None


class _Schedule:
    """When to report and to checkpoint; the same on every worker, because reports are barriers."""

    def __init__(
        self, cluster: ClusterConfig, *, has_state: bool, workers: Workers, device: torch.device
    ) -> None:
        """Begin with a report after the first round."""
        self._cluster, self._has_state = cluster, has_state
        self._workers, self._device = workers, device
        self._last_report, self._last_checkpoint = float("-inf"), time.monotonic()
        self._rounds_since = 0
        self._going: set[str] = set()

    def after_a_round(self, *, is_last: bool) -> _Due:
        """Return what is due by rank 0's clock; every worker must call it after every round."""
        self._rounds_since += 1
        now, every = time.monotonic(), self._cluster.checkpoint_interval_rounds
        interval = self._cluster.checkpoint_interval_seconds
        if self._going:
            interval = min(interval, _NOTICE_INTERVAL_SECONDS)
        checkpoint = self._has_state and (
            now - self._last_checkpoint >= interval
            or (every is not None and self._rounds_since >= every)
        )
        report = checkpoint or is_last or now - self._last_report >= _REPORT_SECONDS
        decision = torch.zeros(2, dtype=torch.float64, device=self._device)
        if self._workers.rank == 0:
            decision += torch.tensor([report, checkpoint], device=self._device)
        self._workers.sum_in_place([decision])
        report, checkpoint = (flag > 0 for flag in decision.tolist())
        notice = self._preemption() if report and self._has_state else None
        return _Due(report, checkpoint or notice is not None, notice)

    def _preemption(self) -> str | None:
        """What to say of machines that are newly about to go; a barrier of all workers."""
        info = ray.train.get_preemption_info()
        going = set() if info is None else set(info.preempted_node_ids)
        new, self._going = going - self._going, going
        return f"machines about to go: {len(new)}; keeping a checkpoint" if new else None

    def reported(self, due: _Due) -> None:
        """Count from now."""
        self._last_report = time.monotonic()
        if due.checkpoint:
            self._last_checkpoint, self._rounds_since = self._last_report, 0


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


def failing_clearly(
    loop: Callable[[], dict[str, Any]], *, cluster: ClusterConfig
) -> dict[str, Any]:
    """Run ``loop`` on a prepared worker; its failures say which machine, and if they are hopeless.

    Raises:
        HopelessError: a restart would only repeat it.
    """
    quiet_worker()
    prepare(cluster)
    ip: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    where = f"on the machine {ip}"
    try:
        return loop()
    except NonFiniteError as error:  # raised from reduced numbers, so on every worker
        return {FAILURE: str(error)}
    except UnavailableError as error:
        raise UnavailableError(f"{error} ({where})") from error
    except (ValueError, StorageError) as error:
        raise HopelessError(f"{error} ({where})") from error
    except torch.OutOfMemoryError as error:
        raise HopelessError(
            f"the GPU has too little memory ({where}): {error}; expected smaller batches, or a "
            "larger share in cluster.gpus_per_worker"
        ) from error
    except OSError as error:
        if said := full_disk(error):
            raise HopelessError(f"{said} ({where})") from error
        raise
