"""The cells of an audit: independent trainings, each a Ray task whose curve outlives the audit.

A finished cell is kept in the run's place as `cells/KEY.json`. An interrupted audit repeats none.
"""

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import ray
import ray.exceptions

from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError
from ray_jobs.failures import reason
from ray_jobs.machine import prepare
from ray_jobs.reporting import METRICS_FILE, Row, append_rows, duration
from ray_jobs.runs import Run
from ray_jobs.terminal import PROGRESS
from storage.blobs import BlobStore, open_blobs

logger = logging.getLogger(__name__)


class Cell(Protocol):
    """One piece of work, a plain value: equal cells are one."""

    def key(self) -> str:
        """Return a name for the finished result, safe in a path and no other cell's."""
        ...


CellT = TypeVar("CellT", bound=Cell)
SharedT = TypeVar("SharedT")
OpenedT = TypeVar("OpenedT")


def run_cells(
    cells: Iterable[CellT],
    task: Callable[[SharedT, CellT], list[Row]],
    shared: SharedT,
    *,
    cluster: ClusterConfig,
    this_run: Run,
    describe: Callable[[CellT, list[Row]], str],
) -> dict[CellT, list[Row]]:
    """Run what is not finished, as many at a time as there are workers; return all curves.

    Args:
        cells: in the order in which they are begun; one that comes again is not run again.
        task: returns the curve of a cell, in rows that JSON can hold. Runs in another process, so
            it must be importable there.
        shared: first argument of every task.
        cluster: connected already.
        this_run: begun already.
        describe: the progress line's words for a cell and its curve.

    Raises:
        JobError: a task failed.
    """
    kept = open_blobs(this_run.state)
    cells = list(dict.fromkeys(cells))
    results = _finished(cells, kept)
    waiting = [cell for cell in cells if cell not in results]
    started, num_before = time.monotonic(), len(results)
    for cell, curve in _run_tasks(waiting, task, shared, cluster=cluster):
        results[cell] = curve
        kept.put(_blob_name(cell), json.dumps(curve).encode())
        append_rows(this_run.logs / METRICS_FILE, [{"cell": cell.key(), "curve": curve}])
        seconds_per_cell = (time.monotonic() - started) / (len(results) - num_before)
        logger.info(
            "audit %d/%d  eta %s  %s",
            len(results),
            len(cells),
            duration(seconds_per_cell * (len(cells) - len(results))),
            describe(cell, curve),
            extra=PROGRESS,
        )
    return {cell: results[cell] for cell in cells}


def _blob_name(cell: Cell) -> str:
    return f"cells/{cell.key()}.json"


def _finished(cells: Sequence[CellT], kept: BlobStore) -> dict[CellT, list[Row]]:
    present = set(kept.list("cells/"))
    return {
        cell: json.loads(kept.get(_blob_name(cell)))
        for cell in cells
        if _blob_name(cell) in present
    }


def _run_tasks(
    waiting: list[CellT],
    task: Callable[[SharedT, CellT], list[Row]],
    shared: SharedT,
    *,
    cluster: ClusterConfig,
) -> Iterator[tuple[CellT, list[Row]]]:
    """Yield every cell with its curve, in the order in which they finish."""
    begin_task = as_task(task, cluster)
    running: dict[Any, CellT] = {}
    while waiting or running:
        while waiting and len(running) < cluster.max_workers:
            cell = waiting.pop(0)
            running[begin_task(shared, cell)] = cell
        (done,), _ = ray.wait(list(running))
        cell = running.pop(done)
        try:
            curve = ray.get(done)
        except ray.exceptions.RayError as error:
            raise JobError(
                f"cell {cell.key()} failed: {reason(error)}; finished ones are kept, the same "
                "command goes on"
            ) from error
        yield cell, curve


def as_task(function: Callable[..., Any], cluster: ClusterConfig) -> Callable[..., Any]:
    """``function`` as a Ray task on what ``cluster`` gives a worker; returns references.

    Args:
        function: importable on every machine.
        cluster: connected already.
    """
    remote = ray.remote(_run_prepared).options(
        num_cpus=cluster.cpus_per_worker,
        num_gpus=cluster.gpus_per_worker,
        accelerator_type=cluster.accelerator_type,
        max_retries=cluster.max_failures,
        # In a trial of a sweep, tasks would else be held to the trial's resources, without a CPU.
        scheduling_strategy="SPREAD" if cluster.placement == "SPREAD" else "DEFAULT",
    )
    return functools.partial(remote.remote, function, cluster)


def _run_prepared(function: Callable[..., Any], cluster: ClusterConfig, *arguments: object) -> Any:
    prepare(cluster)
    return function(*arguments)


def open_once(open_images: Callable[..., OpenedT], config: Any, *, image_size: int) -> OpenedT:
    """What ``open_images(config, image_size=image_size)`` opens, once in each process.

    A task's process lives on for the next task: images are decoded once in it.

    Args:
        open_images: called with ``config`` and the image size.
        config: a flat dataclass.
        image_size: pixels.
    """
    make_config: Callable[..., Any] = type(config)
    recipe = json.dumps(dataclasses.asdict(config))  # has a hash where a list in config has none
    opened: OpenedT = _open(open_images, make_config, recipe, image_size)
    return opened


@functools.lru_cache(maxsize=4)
def _open(
    open_images: Callable[..., Any], make_config: Callable[..., Any], recipe: str, image_size: int
) -> Any:
    return open_images(make_config(**json.loads(recipe)), image_size=image_size)


def require_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds that repeat nothing, or the same thing.

    Raises:
        ValueError: ``seeds`` is empty or has one twice.
    """
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds is {seeds}; expected different numbers, at least one")
