"""Why a run failed, in one sentence: what Ray raises, turned into what to do about it."""

from collections.abc import Iterator
from typing import Final

import ray.exceptions
from ray.train import ControllerError, WorkerGroupError

from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import HopelessError, full_disk

# Of the many that Ray raises, those of which there is more to say than they say themselves.
_REMEDIES: Final[tuple[tuple[type[BaseException], str], ...]] = (
    (
        ImportError,
        "a worker cannot import what the job needs; expected Ringfence and the packages of its "
        "lock file on every machine, and your own code under `ray job submit --working-dir .`",
    ),
    (
        ray.exceptions.ObjectStoreFullError,
        "Ray's object store is too small for what other jobs keep in it; expected room for some "
        "megabytes (`ray start --object-store-memory`, or a larger /dev/shm)",
    ),
    (
        ray.exceptions.OutOfDiskError,
        "the disk of a machine is full, and Ray's object store with it; expected free space where "
        "Ray keeps its files (/tmp/ray)",
    ),
    (
        ray.exceptions.OutOfMemoryError,
        "a machine ran out of memory, and Ray ended a worker; expected smaller batches, fewer "
        "workers on a machine, or more memory",
    ),
)


def explain(error: BaseException, cluster: ClusterConfig, storage_path: str) -> str:
    """Return what to tell the user of ``error``, which `TorchTrainer.fit` raised.

    Args:
        error: any of Ray's.
        cluster: that the run was on.
        storage_path: where its state is.
    """
    state = f"its state is in {storage_path}; the same command goes on from there"
    if known := _known(error):
        return f"{known} ({state})"
    if isinstance(error, WorkerGroupError):
        rank, cause = next(iter(error.worker_failures.items()))
        times = f"after {cluster.max_failures} restarts"
        return f"worker {rank} failed {times}: {one_line(cause)} ({state})"
    if isinstance(error, ray.exceptions.RayActorError) and not error.actor_init_failed:
        return f"Ray Train's controller was lost {cluster.max_failures + 1} times ({state})"
    return f"the run failed: {one_line(error)} ({state})"


def reason(error: BaseException) -> str:
    """Return why a task failed with ``error``, which `ray.get` raised."""
    return _known(error) or one_line(error)


def _known(error: BaseException) -> str | None:
    for cause in _causes(error):
        if isinstance(cause, HopelessError):
            return str(cause)
        if said := full_disk(cause):
            return said
        for kind, remedy in _REMEDIES:
            if isinstance(cause, kind):
                return f"{remedy}: {one_line(cause)}"
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, and what it came from, each once."""
    pending: list[BaseException | None] = [error]
    seen: list[BaseException] = []
    while pending:
        current = pending.pop(0)
        if current is None or any(current is known for known in seen):
            continue
        seen.append(current)
        yield current
        pending += [_inner(current), current.__cause__, current.__context__]
        if isinstance(current, WorkerGroupError):
            pending += current.worker_failures.values()


def _inner(error: BaseException) -> BaseException | None:
    """What Ray wrapped, if ``error`` is such a wrapper."""
    if isinstance(error, ControllerError):
        return error.controller_failure
    if isinstance(error, ray.exceptions.RayTaskError) and isinstance(error.cause, BaseException):
        return error.cause
    return None


def one_line(error: BaseException) -> str:
    """Return the kind of ``error``, without Ray's wrappers, and the last line of its message."""
    while (inner := _inner(error)) is not None:
        error = inner
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"
