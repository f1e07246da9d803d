"""A train loop on the workers of a cluster, through the loss of any of them, to its one result.

What is lost, and who goes on:

- a worker, or a machine with some: Ray Train starts the workers anew, `cluster.max_failures` times
  (machines that go with a notice are not counted);
- Ray Train's controller: it is started anew here, as often;
- the driver, or the machine it is on: the same command goes on, see `runs.py`.

Nothing waits for ever: not for machines (`Waiting`), not for an answer (`machine.py`). What a
restart would only repeat ends the run at once (`GivingUp`).
"""

import logging
import time
from collections.abc import Callable
from typing import Any, Final

import ray.exceptions
from ray.train import TrainingFailedError
from ray.train.torch import TorchConfig

# What ray.train and ray.train.torch export; type checkers take theirs for the classes of Train V1.
from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import (
    ErroredState,
    FinishedState,
    PreemptingState,
    RunningState,
    ShuttingDownState,
    TrainControllerState,
)
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import (
    CheckpointConfig,
    FailureConfig,
    LoggingConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.v2.torch.torch_trainer import TorchTrainer

from ray_jobs.cluster import FAILURE, RUN_NAME, SCORE, ClusterConfig
from ray_jobs.errors import HopelessError, JobError
from ray_jobs.failures import explain
from ray_jobs.leaked_groups import release_leaked_groups
from ray_jobs.machine import collective_backend

logger = logging.getLogger(__name__)

# Between two looks whether there is room for workers.
_LOOK_AGAIN_SECONDS: Final = 0.2
_NOT_WAITING: Final = (
    RunningState,
    PreemptingState,
    ShuttingDownState,
    FinishedState,
    ErroredState,
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
        JobError: the loop failed, workers or the controller were lost more often than
            ``cluster.max_failures``, or no machines came for ``cluster.wait_seconds``.
    """
    callbacks = [callback, GivingUp(), Waiting(cluster)]
    for num_lost in range(cluster.max_failures + 1):
        trainer = TorchTrainer(
            loop,
            train_loop_config=loop_config,
            torch_config=TorchConfig(backend=collective_backend(cluster)),
            scaling_config=_scaling(cluster),
            run_config=_run_config(cluster, storage_path, callbacks),
        )
        try:
            result: Any = trainer.fit()  # typed as Train V1's, which has no return value
        except ray.exceptions.RayActorError as error:
            # One that failed while it began would only fail again.
            if error.actor_init_failed or num_lost == cluster.max_failures:
                raise JobError(explain(error, cluster, storage_path)) from error
            logger.warning("Ray Train's controller was lost: starting it again")
            release_leaked_groups()
        except (TrainingFailedError, ray.exceptions.RayError) as error:
            raise JobError(explain(error, cluster, storage_path)) from error
        else:
            break
    value = result.return_value
    if isinstance(value, dict) and FAILURE in value:
        raise JobError(str(value[FAILURE]))
    return value


def _scaling(cluster: ClusterConfig) -> ScalingConfig:
    gpus = {"GPU": cluster.gpus_per_worker} if cluster.uses_gpu else {}
    return ScalingConfig(
        num_workers=cluster.workers,
        use_gpu=cluster.uses_gpu,
        resources_per_worker={"CPU": cluster.cpus_per_worker, **gpus},
        accelerator_type=cluster.accelerator_type,
        placement_strategy=cluster.placement,
        elastic_resize_monitor_interval_s=cluster.resize_interval_seconds,
    )


def _run_config(cluster: ClusterConfig, storage_path: str, callbacks: list[Any]) -> RunConfig:
    return RunConfig(
        name=RUN_NAME,
        storage_path=storage_path,
        callbacks=callbacks,
        # Starts that fail because a machine went are bounded by their time, not by their number.
        failure_config=FailureConfig(
            max_failures=cluster.max_failures, controller_failure_limit=-1
        ),
        checkpoint_config=CheckpointConfig(
            num_to_keep=cluster.keep_checkpoints,
            checkpoint_score_attribute=SCORE if cluster.keep_best_by else None,
        ),
        logging_config=LoggingConfig(log_level="ERROR"),
    )


class GivingUp(UserCallback):
    """Ends the run at the first failure that no restart would mend.

    Raising in a callback is the one way to tell Ray Train not to try again.
    """

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Pass on what is hopeless among the failures of the workers."""
        del run_context
        for error in worker_exceptions.values():
            if isinstance(error, HopelessError):
                raise error


class Waiting(ControllerCallback):
    """Ends the run when its workers could not be started for ``cluster.wait_seconds``.

    Ray Train itself tries for ever, or where workers may be few, waits for ever.
    """

    def __init__(self, cluster: ClusterConfig) -> None:
        """Count from the first state of the run that is not running."""
        self._cluster = cluster
        self._since: float | None = None

    def after_controller_state_update(
        self, previous_state: TrainControllerState, current_state: TrainControllerState
    ) -> None:
        """Note when the workers were last there; Ray Train calls it after every step.

        Raises:
            HopelessError: that was too long ago.
        """
        if isinstance(current_state, _NOT_WAITING):
            self._since = None
            return
        now = time.monotonic()
        self._since = self._since or now
        if now - self._since > self._cluster.wait_seconds:
            raise HopelessError(
                f"for {self._cluster.wait_seconds:g} s the cluster had no room for "
                f"{self._cluster.min_workers} workers, or lost them as they began; expected "
                "machines to come, others' work to end, or fewer workers (cluster.wait_seconds is "
                "how long to wait)"
            )
        if type(current_state) is type(previous_state):
            # Ray Train would look again at once, and do nothing else with a core of the head.
            time.sleep(_LOOK_AGAIN_SECONDS)
