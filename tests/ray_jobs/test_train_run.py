"""What becomes of a run that fails: tried again or not, for how long, and what is said of it."""

import errno
import logging
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.execution.controller.state import (
    InitializingState,
    RunningState,
    ShuttingDownState,
)
from ray.train.v2.api.callback import UserCallback

from protection.training import NonFiniteError
from ray_jobs import train_run
from ray_jobs.cluster import FAILURE, ClusterConfig
from ray_jobs.errors import HopelessError, JobError
from ray_jobs.failures import explain, reason
from ray_jobs.train_loop import failing_clearly
from ray_jobs.train_run import GivingUp, Waiting, run_on_workers
from storage.errors import LocationError, UnavailableError

CLUSTER = ClusterConfig(max_failures=2)
logger = logging.getLogger(__name__)


def task_error(cause: Exception) -> ray.exceptions.RayTaskError:
    return ray.exceptions.RayTaskError("f", f"Traceback\n{cause}", cause, pid=1, ip="10.0.0.7")


def lost(*, init_failed: bool = False) -> ray.exceptions.ActorDiedError:
    return ray.exceptions.ActorDiedError(task_error(ValueError("bad")) if init_failed else None)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            WorkerGroupError(
                "many lines", {1: UnavailableError("s3://b: no answer (on 10.0.0.7)")}
            ),
            "worker 1 failed after 2 restarts: UnavailableError: s3://b: no answer (on 10.0.0.7)",
        ),
        (ControllerError(HopelessError("the disk is full")), "the disk is full (its state is in"),
        (
            ControllerError(task_error(ModuleNotFoundError("No module named 'mine'"))),
            "a worker cannot import what the job needs; expected Ringfence and .* on every machine",
        ),
        (
            ControllerError(task_error(ModuleNotFoundError("No module named 'mine'"))),
            "working-dir .`: ModuleNotFoundError: No module named 'mine' (its state",
        ),
        (ray.exceptions.ObjectStoreFullError("full"), "object store is too small"),
        (ray.exceptions.OutOfDiskError("full"), "the disk of a machine is full"),
        (ControllerError(task_error(ray.exceptions.OutOfMemoryError("killed"))), "out of memory"),
        (
            ControllerError(OSError(errno.ENOSPC, "No space left on device", "/m/metrics.jsonl")),
            "the disk of /m/metrics.jsonl is full; expected free space on it (its state is in",
        ),
        (lost(), "Ray Train's controller was lost 3 times (its state is in"),
        (lost(init_failed=True), "the run failed: ActorDiedError: "),
        (ControllerError(KeyError("a")), "the run failed: KeyError: 'a' (its state is in /state;"),
    ],
)
def test_a_failure_is_one_line_that_says_what_to_do(error: Exception, message: str) -> None:
    said = explain(error, CLUSTER, "/state")
    assert all(part in said for part in message.split(".*")), said
    assert "\n" not in said
    assert said.endswith("its state is in /state; the same command goes on from there)")


def test_what_hid_behind_another_failure_is_found() -> None:
    error = RuntimeError("could not deserialize")
    error.__cause__ = ImportError("no module")
    assert "cannot import" in reason(error)
    assert reason(task_error(ValueError("labels are [3]"))) == "ValueError: labels are [3]"


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What each `fit` raises or returns, in order."""
    outcomes: list[Any] = []

    def fit() -> Any:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return SimpleNamespace(return_value=outcome)

    monkeypatch.setattr(train_run, "TorchTrainer", lambda *_, **__: SimpleNamespace(fit=fit))
    monkeypatch.setattr(train_run, "release_leaked_groups", lambda: logger.info("released"))
    return outcomes


def run_it() -> Any:
    return run_on_workers(
        lambda _: {}, {}, cluster=CLUSTER, storage_path="/state", callback=UserCallback()
    )


def test_a_lost_controller_is_started_again(
    fits: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    fits += [lost(), lost(), {"accuracy": 0.5}]
    with caplog.at_level("INFO"):
        assert run_it() == {"accuracy": 0.5}
    for what in ("controller was lost: starting it again", "released"):
        assert caplog.text.count(what) == 2


@pytest.mark.parametrize(
    ("outcomes", "left", "message"),
    [
        ([lost(), lost(), lost(), {}], 1, "controller was lost 3 times"),
        ([lost(init_failed=True), {}], 1, "the run failed: ActorDiedError"),
        ([ControllerError(HopelessError("no room")), {}], 1, r"no room \(its state"),
        ([{FAILURE: "loss is nan"}], 0, "^loss is nan$"),
    ],
)
def test_what_a_restart_would_repeat_is_not_tried_again(
    outcomes: list[Any], left: int, message: str, fits: list[Any]
) -> None:
    fits += outcomes
    with pytest.raises(JobError, match=message):
        run_it()
    assert len(fits) == left


def test_giving_up_at_the_hopeless_failure_of_any_worker() -> None:
    callback = pickle.loads(pickle.dumps(GivingUp()))
    callback.after_exception(None, {0: UnavailableError("later"), 1: OSError("killed")})
    with pytest.raises(HopelessError, match="disk is full"):
        callback.after_exception(None, {0: OSError("killed"), 1: HopelessError("disk is full")})


def test_waiting_ends_and_running_is_no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    cluster = ClusterConfig(workers=(2, 4), wait_seconds=10)
    waiting = pickle.loads(pickle.dumps(Waiting(cluster)))
    begun, running = InitializingState(), RunningState()
    for seconds in (0, 9, 1):  # the clock begins anew when the workers were there
        now += seconds
        waiting.after_controller_state_update(running, begun)
        if seconds == 9:
            waiting.after_controller_state_update(begun, running)
    assert not slept
    waiting.after_controller_state_update(begun, begun)
    assert slept  # Ray Train would ask again at once
    now += 11
    with pytest.raises(HopelessError, match="for 10 s the cluster had no room for 2 workers"):
        waiting.after_controller_state_update(begun, begun)
    waiting.after_controller_state_update(begun, ShuttingDownState(next_state=running))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (UnavailableError("no answer"), UnavailableError, r"^no answer \(on the machine [\d.]+\)$"),
        (LocationError("x: No space left"), HopelessError, r"^x: No space left \(on the machine"),
        (ValueError("labels"), HopelessError, r"^labels \(on the machine"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
            HopelessError,
            r"^the disk of /tmp/x is full; expected free space on it \(on the machine [\d.]+\)",
        ),
        (OSError(errno.ECONNRESET, "reset by peer"), OSError, "reset by peer"),
        (RuntimeError("gloo"), RuntimeError, "^gloo$"),
    ],
)
def test_a_worker_says_where_it_failed_and_whether_that_is_hopeless(
    error: Exception, kind: type[Exception], message: str
) -> None:
    def loop() -> dict[str, Any]:
        raise error

    with pytest.raises(kind, match=message):
        failing_clearly(loop, cluster=CLUSTER)


def test_numbers_that_are_none_fail_alike_on_all_workers() -> None:
    def loop() -> dict[str, Any]:
        raise NonFiniteError("loss is nan")

    assert failing_clearly(loop, cluster=CLUSTER) == {FAILURE: "loss is nan"}
