"""Connecting to a cluster, or starting one on this machine, and whether it is large enough."""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray
from ray._private.ray_constants import DEFAULT_DASHBOARD_PORT

from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError, UsageError
from ray_jobs.machine import EMBEDDED_OBJECT_STORE_BYTES, TRAIN_ENVIRONMENT

logger = logging.getLogger(__name__)


def connect(config: ClusterConfig) -> None:
    """Connect to the cluster, or start an embedded one, and check that ``config`` fits it.

    Raises:
        UsageError: the cluster cannot be reached, or has too little room for the workers.
        JobError: none could be started here.
    """
    for name, value in TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        _initialise(config.address or os.environ.get("RAY_ADDRESS"))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    if config.autoscaling:
        logger.info("room for %d workers now, of %d", room(nodes, config), config.max_workers)
    else:
        require_room(nodes, config)


def _initialise(address: str | None) -> None:
    logger.info("%s", f"connecting to Ray at {address}" if address else "starting Ray")
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            # Console scripts do not put the working directory on the path of the workers they
            # start, and a model factory may be in it; a running cluster has paths of its own.
            runtime_env=None if address else {"env_vars": {"PYTHONPATH": _python_path()}},
            object_store_memory=None if address else EMBEDDED_OBJECT_STORE_BYTES,
            dashboard_port=None if address else announced_dashboard_port(),
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"address is {address!r}, where no Ray cluster answers "
            f"({str(error).splitlines()[0]}); expected HOST:PORT of a running head node, or "
            "null to start one here (a cluster that asks for a token: the same one in "
            "~/.ray/auth_token, or in RAY_AUTH_TOKEN)"
        ) from error
    except Exception as error:
        if type(error) is not Exception:  # what Ray raises where its own processes do not start
            raise
        raise JobError(
            f"Ray did not start on this machine ({str(error).splitlines()[0]}); expected room for "
            "its processes: a machine that is less busy, with more memory or a disk that is not "
            "full"
        ) from error


def announced_dashboard_port() -> int:
    """Port of the dashboard of a Ray that is about to be started here, which its processes know.

    Ray Train's cleaner asks a dashboard whether its controller lives. Where none is named, it asks
    that of the last `ray start` on this machine: of another cluster, whose answer makes it leave,
    or of one that is gone, for which every run of less than a minute waits 12 s at its end.
    """
    port = _unused_port(DEFAULT_DASHBOARD_PORT) or _unused_port(0)
    os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    assert port is not None  # the system finds one
    return port


def _unused_port(wanted: int) -> int | None:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return None
        return int(probe.getsockname()[1])


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*filter(None, inherited), str(Path.cwd())]))


def room(nodes: Sequence[Mapping[str, float]], config: ClusterConfig) -> int:
    """Return how many workers of ``config`` machines of these resources hold at a time."""
    kind = f"accelerator_type:{config.accelerator_type}"
    slots = 0
    for node in nodes:
        of_node = [int(node.get("CPU", 0) // config.cpus_per_worker)]
        if config.uses_gpu:
            # Fractions that fill a GPU may sum to a little less than it.
            of_node.append(int(node.get("GPU", 0) / config.gpus_per_worker + 1e-6))
        if config.accelerator_type is not None and kind not in node:
            continue
        slots += min(of_node)
    return slots


def require_room(nodes: Sequence[Mapping[str, float]], config: ClusterConfig) -> int:
    """Return the `room`, which must be enough for the fewest workers.

    Raises:
        UsageError: it is not.
    """
    slots = room(nodes, config)
    if slots < config.min_workers:
        needs = f"{config.cpus_per_worker} CPUs"
        if config.uses_gpu:
            needs += f" and {config.gpus_per_worker:g} {config.accelerator_type or 'GPU'}s"
        raise UsageError(
            f"cluster.workers is {config.workers} of {needs} each, but the cluster has room for "
            f"{slots} (its machines: {_described(nodes)}); expected at most {slots} workers, "
            "smaller ones, or autoscaling: true where the cluster grows"
        )
    return slots


def _described(nodes: Sequence[Mapping[str, float]]) -> str:
    kinds = [
        ", ".join(
            f"{node[name]:g} {name}s" if name in ("CPU", "GPU") else name.partition(":")[2]
            for name in sorted(node, key=lambda name: (":" in name, name))
            if name in ("CPU", "GPU") or name.startswith("accelerator_type:")
        )
        for node in nodes
    ]
    counted = {kind: kinds.count(kind) for kind in kinds if kind}
    return "; ".join(f"{count} with {kind}" for kind, count in counted.items()) or "none"
