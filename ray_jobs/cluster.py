"""The cluster a job runs on: connecting, checking its size, and running a train loop on it."""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ray
import ray.exceptions
from ray.train import TrainingFailedError, WorkerGroupError

# What ray.train and ray.train.torch export; type checkers take theirs for the classes of Train V1.
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.v2.torch.torch_trainer import TorchTrainer

from ray_jobs.errors import JobError, UsageError

logger = logging.getLogger(__name__)

# A loop that returns this key failed in a way that no retry would mend; the value says how.
FAILURE: Final = "failure"
# Key of a report with a checkpoint: the greatest are kept.
SCORE: Final = "score"
# Folder, below the storage path, of what Ray Train keeps of a run and of the run's checkpoints.
RUN_NAME: Final = "train"

_TRAIN_ENVIRONMENT: Final = {
    # report() waits for the controller's next poll; 2 s is far longer than a small round.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Without these a missing resource or an uneven report would wait for ever.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "120",
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Workers, and where they run. Nothing here changes a result; it may differ from run to run."""

    workers: int = 1
    """Worker processes that share the job."""
    cpus_per_worker: int = 1
    """CPU cores, and torch threads, of each worker."""
    gpus_per_worker: float = 0
    """GPUs of each worker; a fraction shares one GPU among several workers of an audit."""
    address: str | None = None
    """Address of a running Ray cluster, `auto` for the one on this machine; null: RAY_ADDRESS if
    set, else one is started."""
    max_failures: int = 3
    """Times that lost workers are replaced and the run resumed before the job fails."""
    checkpoint_interval_seconds: float = 60
    """Least time between two checkpoints of the training state; 0: after every round."""
    keep_checkpoints: int = 2
    """Checkpoints of a run that are kept: its newest, or its best and the newest one."""
    keep_best_by: str | None = None
    """Metric in the run's metrics.jsonl whose greatest values make the best checkpoints, with a
    minus in front its smallest, e.g. `-original_drop`; null: only age counts."""

    def __post_init__(self) -> None:
        """Reject values that no cluster can have."""
        for name, least in (
            ("workers", 1),
            ("cpus_per_worker", 1),
            ("max_failures", 0),
            ("keep_checkpoints", 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")
        for name in ("gpus_per_worker", "checkpoint_interval_seconds"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")

    @property
    def uses_gpu(self) -> bool:
        """Whether workers compute on a GPU."""
        return self.gpus_per_worker > 0


@dataclass(frozen=True, kw_only=True)
class GroupedClusterConfig(ClusterConfig):
    """A cluster whose workers may share one unit of work, for what does not fit one of them."""

    workers_per_group: int = 1
    """Workers that hold between them what one has no memory for: a model that is protected, or the
    ensemble that protects data."""

    def __post_init__(self) -> None:
        """Reject groups that the workers do not fill."""
        super().__post_init__()
        if self.workers_per_group < 1 or self.workers % self.workers_per_group:
            raise ValueError(
                f"workers_per_group is {self.workers_per_group}, but workers is {self.workers}; "
                "expected a divisor of it"
            )


def connect(config: ClusterConfig) -> None:
    """Connect to the cluster, or start an embedded one, and check that ``config`` fits it.

    Raises:
        UsageError: the cluster cannot be reached, or has fewer CPUs or GPUs than asked for.
    """
    for name, value in _TRAIN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not ray.is_initialized():
        address = config.address or os.environ.get("RAY_ADDRESS")
        logger.info("%s", f"connecting to Ray at {address}" if address else "starting Ray")
        try:
            ray.init(
                address=address or "local",
                logging_level=logging.ERROR,
                log_to_driver=False,
                # Console scripts do not put the working directory on the path of the workers they
                # start, and a model factory may be in it; a running cluster has paths of its own.
                runtime_env=None if address else {"env_vars": {"PYTHONPATH": _python_path()}},
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"address is {address!r}, where no Ray cluster answers "
                f"({str(error).splitlines()[0]}); expected HOST:PORT of a running head node, or "
                "null to start one here (token authentication needs RAY_AUTH_MODE=token)"
            ) from error
    _check_resources(config, ray.cluster_resources())  # type: ignore[no-untyped-call]


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(dict.fromkeys([*filter(None, inherited), str(Path.cwd())]))


def _check_resources(config: ClusterConfig, resources: dict[str, float]) -> None:
    for kind, field, each in (
        ("GPU", "gpus_per_worker", config.gpus_per_worker),
        ("CPU", "cpus_per_worker", config.cpus_per_worker),
    ):
        asked, present = config.workers * each, resources.get(kind, 0)
        if asked > present:
            raise UsageError(
                f"workers is {config.workers} and {field} is {each:g}, but the cluster has "
                f"{present:g} {kind}s; expected at most {present:g} {kind}s in all"
            )


def run_on_workers(
    loop: Callable[[dict[str, Any]], Any],
    loop_config: dict[str, Any],
    *,
    cluster: ClusterConfig,
    storage_path: str,
    callback: UserCallback,
) -> Any:
    """Run ``loop`` on every worker, through failures of workers; return what rank 0 returned.

    Raises:
        JobError: the loop failed, or workers were lost more often than ``cluster.max_failures``.
    """
    trainer = TorchTrainer(
        loop,
        train_loop_config=loop_config,
        scaling_config=ScalingConfig(
            num_workers=cluster.workers,
            use_gpu=cluster.uses_gpu,
            resources_per_worker={
                "CPU": cluster.cpus_per_worker,
                **({"GPU": cluster.gpus_per_worker} if cluster.uses_gpu else {}),
            },
        ),
        run_config=RunConfig(
            name=RUN_NAME,
            storage_path=storage_path,
            callbacks=[callback],
            failure_config=FailureConfig(
                max_failures=cluster.max_failures, controller_failure_limit=3
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=cluster.keep_checkpoints,
                checkpoint_score_attribute=SCORE if cluster.keep_best_by else None,
            ),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result: Any = trainer.fit()  # typed as Train V1's, which has no return value
    except WorkerGroupError as error:
        rank, cause = next(iter(error.worker_failures.items()))
        raise JobError(
            f"worker {rank} failed after {cluster.max_failures} restarts: {_one_line(cause)} (its "
            f"state is in {storage_path}; the same command goes on from there)"
        ) from error
    except (TrainingFailedError, ray.exceptions.RayError) as error:
        raise JobError(
            f"the run failed: {_one_line(error)}; its state is in {storage_path}"
        ) from error
    value = result.return_value
    if isinstance(value, dict) and FAILURE in value:
        raise JobError(str(value[FAILURE]))
    return value


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else ''}"


def quiet_worker() -> None:
    """Silence what Ray logs on a worker about every report: the progress line says it already."""
    import ray.train.v2._internal.execution.context as context

    logging.getLogger(context.__file__).setLevel(logging.WARNING)
