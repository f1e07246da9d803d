"""When a run reports and checkpoints, in this process."""

import types
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import ray.train
import torch
from ray.train.v2.api.preemption import PreemptionInfo

from protection.workers import ALONE, Workers
from ray_jobs import train_loop
from ray_jobs.cluster import ClusterConfig
from ray_jobs.reporting import NOTICE, ROWS
from ray_jobs.run_checkpoints import Report
from ray_jobs.runs import Run
from ray_jobs.train_loop import report_rounds
from storage.location import parse_location


class Round(NamedTuple):
    round_index: int


class Clock:
    """Time passes in rounds; machines are said to go while a round runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.going: list[str] = []
        self.reports: list[tuple[int, bool, list[str]]] = []
        """Round (of rank 0), whether with a checkpoint, and notices."""

    def rounds(self, count: int, *, seconds: float, notices: dict[int, list[str]]) -> Any:
        for index in range(count):
            self.now += seconds
            self.going += notices.get(index, [])
            yield Round(index)

    def preemption(self) -> PreemptionInfo | None:
        ranks = {node: [0] for node in self.going}
        return PreemptionInfo(None, ranks) if ranks else None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()

    def report(metrics: dict[str, Any], **_: object) -> None:
        keep(metrics[ROWS], is_checkpoint=False)

    def report_checkpoint(reports: list[Report], *_: object) -> None:
        keep(reports[-1].rows, is_checkpoint=True)

    def keep(rows: list[dict[str, Any]], *, is_checkpoint: bool) -> None:
        notices = [row[NOTICE] for row in rows if NOTICE in row]
        clock.reports.append((rows[-1]["round_index"] if rows else -1, is_checkpoint, notices))

    monkeypatch.setattr("time.monotonic", lambda: clock.now)
    monkeypatch.setattr(ray.train, "report", report)
    monkeypatch.setattr(ray.train, "get_preemption_info", clock.preemption)
    monkeypatch.setattr(train_loop, "report_checkpoint", report_checkpoint)
    return clock


def reported(
    clock: Clock,
    cluster: ClusterConfig,
    *,
    count: int,
    seconds: float,
    notices: dict[int, list[str]] | None = None,
    workers: Workers = ALONE,
) -> list[tuple[int, bool, list[str]]]:
    output = parse_location("/nowhere")
    state: Any = types.SimpleNamespace(state_dict=dict)
    report_rounds(
        clock.rounds(count, seconds=seconds, notices=notices or {}),
        state,
        this_run=Run(output, output, Path("/nowhere"), {}),
        num_rounds=count,
        first_round=0,
        cluster=cluster,
        workers=workers,
        device=torch.device("cpu"),
    )
    return clock.reports


def checkpoints(reports: list[tuple[int, bool, list[str]]]) -> list[int]:
    return [index for index, is_checkpoint, _ in reports if is_checkpoint]


def test_short_rounds_share_a_report(clock: Clock) -> None:
    reports = reported(clock, ClusterConfig(), count=10, seconds=0.25)
    assert [index for index, *_ in reports] == [0, 4, 8, 9]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"checkpoint_interval_seconds": 0}, list(range(12))),
        ({"checkpoint_interval_seconds": 50}, [4, 9]),
        ({"checkpoint_interval_rounds": 4}, [3, 7, 11]),
        ({"checkpoint_interval_rounds": 4, "checkpoint_interval_seconds": 30}, [2, 5, 8, 11]),
        ({"checkpoint_interval_rounds": 100, "checkpoint_interval_seconds": 1000}, []),
    ],
)
def test_a_checkpoint_is_due_after_time_or_rounds(
    fields: dict[str, Any], expected: list[int], clock: Clock
) -> None:
    reports = reported(clock, ClusterConfig(**fields), count=12, seconds=10)
    assert checkpoints(reports) == expected


def test_a_machine_that_is_about_to_go_is_a_checkpoint_and_more_until_it_goes(clock: Clock) -> None:
    never = ClusterConfig(checkpoint_interval_seconds=1000)
    notices = {3: ["a"], 7: ["b", "c"]}
    reports = reported(clock, never, count=10, seconds=5, notices=notices)
    assert checkpoints(reports) == [3, 5, 7, 9]
    assert reports[3][2] == ["machines about to go: 1; keeping a checkpoint"]
    assert reports[7][2] == ["machines about to go: 2; keeping a checkpoint"]


def test_other_workers_do_what_rank_0_decided(clock: Clock) -> None:
    """Its clock counts; a worker whose own is ahead reports no more often."""

    def decided(tensors: list[torch.Tensor]) -> None:
        assert not tensors[0].any()  # rank 1 has no say
        tensors[0] += torch.tensor([clock.now == 297, False])

    workers = Workers(1, 2, decided)
    reports = reported(clock, ClusterConfig(), count=5, seconds=99, workers=workers)
    assert reports == [(-1, False, [])]  # once, and the rows are rank 0's
