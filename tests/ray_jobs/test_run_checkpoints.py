"""Which checkpoint a run goes on from, in this process."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch

from protection.workers import ALONE, Workers
from ray_jobs.reporting import Row
from ray_jobs.run_checkpoints import Place, Report, _score, report_checkpoint, restore
from ray_jobs.runs import Run
from storage.blobs import open_blobs
from storage.location import Location
from storage.training_state import commit_training_state

CPU = torch.device("cpu")


class State:
    """A state that is one number."""

    def __init__(self) -> None:
        self.number: object = None

    def state_dict(self) -> dict[str, object]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.number = state["number"]


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the checkpoints that Ray knows, newest last."""
    names: list[str] = []

    def newest() -> ray.train.Checkpoint | None:
        return ray.train.Checkpoint(f"/runs/train/{names[-1]}") if names else None

    monkeypatch.setattr("ray.train.get_checkpoint", newest)
    return names


@pytest.fixture
def this_run(location: Location, tmp_path: Path) -> Run:
    return Run(location, location.sibling(".run"), tmp_path, {})


def checkpoint(this_run: Run, num_done: int, *, attempt: int = 1) -> Location:
    location = this_run.state / "train" / Place(num_done, attempt).name
    reports = [
        {"num_done": done, "rows": [{"round_index": done - 1}]}
        for done in range(max(1, num_done - 2), num_done + 1)
    ]
    kept = {"state": {"number": num_done}, "reports": reports}
    commit_training_state(location, kept)
    return location


def damage(location: Location) -> None:
    blobs = open_blobs(location)
    (name,) = blobs.list("state.")[:1]
    blobs.put(name, blobs.get(name) + b"!")


def test_nothing_is_restored_where_nothing_was_kept(this_run: Run) -> None:
    state = State()
    assert restore(state, this_run, workers=ALONE, device=CPU) == (1, [])
    assert state.number is None


@pytest.mark.parametrize(
    ("known", "unreported"),
    [
        ("round-000100-try-1", []),
        ("round-000099-try-1", [{"round_index": 99}]),
        ("round-000098-try-1", [{"round_index": 98}, {"round_index": 99}]),
        (None, [{"round_index": 97}, {"round_index": 98}, {"round_index": 99}]),
    ],
)
def test_the_newest_is_restored_and_what_ray_never_heard_of_it_is_reported(
    known: str | None, unreported: list[Row], this_run: Run, registered: list[str]
) -> None:
    registered += [known] if known else []
    for num_done in (3, 20, 100):
        checkpoint(this_run, num_done)
    # A crash before the manifest leaves blobs, which are no checkpoint.
    open_blobs(this_run.state / "train" / Place(101, 1).name).put("state.0.json", b"{}")
    state = State()
    assert restore(state, this_run, workers=ALONE, device=CPU) == (1, unreported)
    assert state.number == 100


def test_a_damaged_one_is_passed_over_for_the_one_before_and_said_so(
    this_run: Run, registered: list[str]
) -> None:
    registered.append("round-000003-try-1")
    damaged = [checkpoint(this_run, num_done) for num_done in (3, 20, 100)][1:]
    for location in damaged:
        damage(location)
    state = State()
    attempt, rows = restore(state, this_run, workers=ALONE, device=CPU)
    notices = [row["notice"] for row in rows]
    assert state.number == 3
    assert attempt == 2  # its round-000020 must not have the name of the damaged one
    assert [notice.split(":")[0] for notice in notices] == [
        "checkpoint round-000100-try-1 is passed over",
        "checkpoint round-000020-try-1 is passed over",
        "resuming from round-000003-try-1",
    ]
    assert "changed after it was committed" in notices[0]


def test_no_whole_one_means_starting_again_and_saying_so(this_run: Run) -> None:
    damage(checkpoint(this_run, 3))
    state = State()
    attempt, rows = restore(state, this_run, workers=ALONE, device=CPU)
    notices = [row["notice"] for row in rows]
    assert state.number is None
    assert attempt == 2
    assert notices[1] == "no checkpoint is whole: starting again"


def test_other_workers_load_what_rank_0_decided(this_run: Run) -> None:
    for num_done in (3, 20):
        checkpoint(this_run, num_done)

    def hear_of_3(tensors: list[torch.Tensor]) -> None:
        tensors[0] += torch.tensor([3, 1, 2])

    state = State()
    assert restore(state, this_run, workers=Workers(1, 2, hear_of_3), device=CPU) == (2, [])
    assert state.number == 3


def test_a_later_attempt_is_newer_than_an_earlier_one_at_the_same_round(this_run: Run) -> None:
    damage(checkpoint(this_run, 20))
    for num_done in (19, 20):
        checkpoint(this_run, num_done, attempt=2)
    state = State()
    attempt, rows = restore(state, this_run, workers=ALONE, device=CPU)
    assert (state.number, attempt) == (20, 2)
    assert rows == [{"round_index": index} for index in (17, 18, 19)]


@pytest.mark.parametrize(
    ("best_by", "score"), [("accuracy", 0.5), ("-accuracy", -0.5), ("loss", -math.inf)]
)
def test_the_best_checkpoints_are_those_of_the_named_metric(best_by: str, score: float) -> None:
    assert _score({"accuracy": 0.5, "loss": math.nan}, best_by) == score


def test_a_metric_that_no_row_has_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"is '-accurac', which names no .*one of accuracy, loss"):
        _score({"accuracy": 0.5, "loss": 1.0}, "-accurac")


def test_a_checkpoint_that_a_lost_worker_left_there_is_as_good(
    this_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given up for lost while it committed; its round was done again by another."""
    checkpoint(this_run, 7)
    storage = SimpleNamespace(
        build_checkpoint_path_from_name=lambda name: f"/runs/train/{name}", storage_filesystem=None
    )
    context = SimpleNamespace(get_storage=lambda: storage)
    monkeypatch.setattr("ray.train.get_context", lambda: context)
    uploaded: list[ray.train.Checkpoint] = []

    def report(
        _: object, *, checkpoint: Any, checkpoint_dir_name: str, checkpoint_upload_fn: Any
    ) -> None:
        uploaded.append(checkpoint_upload_fn(checkpoint, checkpoint_dir_name))

    monkeypatch.setattr("ray.train.report", report)
    run = this_run._replace(recipe={"cluster": {}})
    report_checkpoint([Report(7, [{"round_index": 6}])], State().state_dict(), Place(7, 1), run)
    assert [kept.path for kept in uploaded] == ["/runs/train/round-000007-try-1"]
