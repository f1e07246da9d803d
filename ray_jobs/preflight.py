"""Whether each machine of a cluster can take part in a run, asked before workers start there.

A machine that comes later is not asked: what it cannot do fails its worker, see `failures.py`.
"""

import os
from collections.abc import Callable
from typing import Any, Final

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import room
from ray_jobs.errors import JobError
from ray_jobs.failures import one_line
from ray_jobs.runs import Run
from storage.inventory import RUN_RECIPE

# Starting a process on a busy machine takes seconds; S3 is tried for some more.
_ANSWER_SECONDS: Final = 90.0


def check_machines(cluster: ClusterConfig, this_run: Run) -> None:
    """Let each machine with room for a worker import Ringfence and look for the begun run.

    Args:
        cluster: connected already.
        this_run: begun already.

    Raises:
        JobError: a machine cannot; the message names it.
    """
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if len(alive) == 1:
        return  # the driver is there, and did both
    answers = {
        _ask(node["NodeID"], this_run): node["NodeManagerAddress"]
        for node in alive
        if room([node["Resources"]], cluster)
    }
    if not answers:
        return
    _, late = ray.wait(list(answers), num_returns=len(answers), timeout=_ANSWER_SECONDS)
    for answer in late:
        ray.cancel(answer, force=True)
    for answer, address in answers.items():
        if answer in late:
            raise JobError(
                f"machine {address} did not answer within {_ANSWER_SECONDS:g} s; expected it to "
                "start a process by then (is it overloaded, or its disk full?)"
            )
        try:
            problem = ray.get(answer)
        except ray.exceptions.RayError as error:
            problem = one_line(error)
        if problem is not None:
            raise JobError(f"machine {address} cannot take part: {problem}")


def _ask(node_id: str, this_run: Run) -> Any:
    where = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(probe()).options(num_cpus=0, max_retries=0, scheduling_strategy=where)
    return task.remote(str(this_run.state), RUN_RECIPE)


def probe() -> Callable[[str, str], str | None]:
    """Return what asks the machine that it is called on."""

    def cannot(state: str, name: str) -> str | None:
        """Say why a worker here could not see the blob ``name`` of ``state``; None: it can.

        It is defined in a function, so that it travels as a whole: a machine without Ringfence
        could not import it.
        """
        try:
            from storage.blobs import open_blobs
            from storage.errors import StorageError
        except ImportError as error:
            return (
                f"it cannot import Ringfence ({error}); expected it, and the packages of its lock "
                "file, on every machine, or `ray job submit --working-dir .`"
            )
        inherited = os.environ.get("RINGFENCE_S3_TOTAL_SECONDS")
        os.environ["RINGFENCE_S3_TOTAL_SECONDS"] = inherited or "20"
        try:
            if open_blobs(state).exists(name):
                return None
        except StorageError as error:
            return str(error)
        finally:
            if inherited is None:  # this process may serve others
                del os.environ["RINGFENCE_S3_TOTAL_SECONDS"]
        return f"it does not see {state}; expected s3://, or a folder that all machines share"

    return cannot
