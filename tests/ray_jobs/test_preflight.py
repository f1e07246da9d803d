"""What a machine says when it is asked whether it can take part, in this process."""

import dataclasses
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.exceptions
from ray import cloudpickle

from ray_jobs import preflight
from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError
from ray_jobs.preflight import check_machines, probe
from ray_jobs.runs import Run
from storage.blobs import open_blobs
from storage.inventory import RUN_RECIPE
from storage.location import Location


@pytest.fixture
def this_run(location: Location, tmp_path: Path) -> Run:
    begun = Run(location, location.sibling(".run"), tmp_path, {})
    open_blobs(begun.state).put(RUN_RECIPE, b"{}")
    return begun


def test_a_machine_that_sees_the_run_can_take_part(this_run: Run) -> None:
    assert probe()(str(this_run.state), RUN_RECIPE) is None


def test_a_folder_that_is_on_another_machine_is_named(tmp_path: Path) -> None:
    said = probe()(str(tmp_path), RUN_RECIPE)
    assert said is not None
    assert said.startswith(f"it does not see {tmp_path}; expected s3://, or a folder that all")


@pytest.mark.s3
def test_a_store_that_cannot_be_reached_from_there_is_named_soon(
    s3_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "2")
    nobody = dataclasses.replace(s3_location, endpoint_override="127.0.0.1:9")
    said = probe()(str(nobody), RUN_RECIPE)
    assert said is not None
    assert said.startswith(f"s3://tests/{nobody.key}/{RUN_RECIPE}")
    assert os.environ["RINGFENCE_S3_TOTAL_SECONDS"] == "2"


def test_the_question_reaches_a_machine_without_ringfence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    question = cloudpickle.dumps(probe())
    for name in ("ray_jobs.preflight", "ray_jobs", "storage.blobs", "storage.errors"):
        monkeypatch.setitem(sys.modules, name, None)
    said = cloudpickle.loads(question)("/nowhere", RUN_RECIPE)
    assert said.startswith("it cannot import Ringfence (import of storage.blobs halted")
    assert "expected it, and the packages of its lock file, on every machine" in said


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each node of a cluster answers; "late": nothing."""
    by_node: dict[str, Any] = {}
    cancelled: list[str] = []

    def get(node: str) -> str | None:
        if isinstance(by_node[node], Exception):
            raise by_node[node]
        return by_node[node]

    fake = SimpleNamespace(
        nodes=lambda: [
            {"Alive": True, "NodeID": n, "NodeManagerAddress": f"ip-{n}", "Resources": {"CPU": 1}}
            for n in by_node
        ],
        wait=lambda refs, **_: ([], [ref for ref in refs if by_node[ref] == "late"]),
        get=get,
        cancel=lambda ref, **_: cancelled.append(ref),
        exceptions=ray.exceptions,
    )
    monkeypatch.setattr(preflight, "ray", fake)
    monkeypatch.setattr(preflight, "_ask", lambda node_id, _: node_id)
    return by_node


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("it does not see /a", "machine ip-b cannot take part: it does not see /a"),
        ("late", "machine ip-b did not answer within 90 s"),
        (
            ray.exceptions.OutOfDiskError("disk is full"),
            "machine ip-b cannot take part: OutOfDiskError: ",
        ),
    ],
)
def test_the_machine_that_cannot_take_part_is_named(
    answer: object, message: str, answers: dict[str, Any], this_run: Run
) -> None:
    answers |= {"a": None, "b": answer}
    with pytest.raises(JobError, match=message):
        check_machines(ClusterConfig(), this_run)


def test_machines_without_room_for_a_worker_are_not_asked(
    answers: dict[str, Any], this_run: Run
) -> None:
    answers |= {"a": None, "b": None}
    check_machines(ClusterConfig(), this_run)
    answers["b"] = "it does not see /a"
    check_machines(ClusterConfig(cpus_per_worker=2), this_run)
