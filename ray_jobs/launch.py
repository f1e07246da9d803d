"""From a checked recipe to a committed result: what every job on Ray Train does on the driver."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import connect
from ray_jobs.preflight import check_machines
from ray_jobs.reporting import METRICS_FILE, Row, RowWriter, following
from ray_jobs.runs import Run, begin, find_run
from ray_jobs.train_run import run_on_workers
from storage.blobs import open_blobs
from storage.errors import StorageError

logger = logging.getLogger(__name__)


class TrainJob(Protocol):
    """A recipe that Ray Train runs."""

    @property
    def output(self) -> str:
        """Location to commit to."""
        ...

    @property
    def cluster(self) -> ClusterConfig:
        """Workers, and where they run."""
        ...

    def parents(self) -> Mapping[str, object]:
        """What it takes, with commit ids and digests: see `ray_jobs.lineage`."""
        ...


def launch(
    job: TrainJob,
    *,
    verb: str,
    loop: Callable[[dict[str, Any]], dict[str, Any]],
    format_row: Callable[[Row], str],
    step_field: str,
) -> str:
    """Run ``loop`` on the workers, show their rows, and return the location that it committed.

    Args:
        job: the recipe, complete and with absolute paths; ``loop`` gets it as ``job``, and its
            `Run` as ``run``.
        verb: the command, recorded in the recipe.
        loop: the train loop of one worker.
        format_row: a reported row as a line of progress.
        step_field: the row's field that counts rounds.

    Raises:
        UsageError, AlreadyCommittedError: the cluster or the output is refused; nothing is written.
        JobError: a machine cannot take part, or the run failed.
    """
    run = find_run(job, verb=verb, parents=job.parents())
    connect(job.cluster)
    begin(run)
    check_machines(job.cluster, run)
    with curves_kept(run), following(run.logs / METRICS_FILE, format_row):
        run_on_workers(
            loop,
            {"job": job, "run": run},
            cluster=job.cluster,
            storage_path=run.state.arrow_uri,
            callback=RowWriter(run.logs, step_field=step_field),
        )
    return str(run.output)


@contextlib.contextmanager
def curves_kept(run: Run) -> Iterator[None]:
    """Keep the metrics of a run whose state is elsewhere there, too: this machine may not last.

    Where the command goes on on another machine, they are taken from there.
    """
    if run.state.is_local:
        yield
        return
    here, blobs = run.logs / METRICS_FILE, open_blobs(run.state)
    if not here.exists() and blobs.exists(METRICS_FILE):
        here.write_bytes(blobs.get(METRICS_FILE))
    here.touch()
    try:
        yield
    finally:
        try:
            blobs.put(METRICS_FILE, here.read_bytes())
        except StorageError as error:  # what was made is what counts
            logger.warning("metrics are in %s alone: %s", here, error)
