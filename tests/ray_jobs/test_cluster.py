"""What a recipe may say of a cluster, and whether a cluster is enough for it."""

from typing import Any

import pytest

from ray_jobs.cli import parse
from ray_jobs.cluster import ClusterConfig, GroupedClusterConfig
from ray_jobs.connection import connect, require_room, room
from ray_jobs.errors import JobError, UsageError
from ray_jobs.machine import collective_backend, prepare
from ray_jobs.pretrain import Pretrain
from ray_jobs.recipes import recipe_from, to_plain
from tests.ray_jobs.conftest import ORIGINAL, TINY


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workers": 0}, "workers is 0; expected at least 1"),
        ({"workers": (0, 2)}, r"workers is \(0, 2\); expected at least 1"),
        ({"workers": (3, 2)}, r"workers is \[3, 2\]; expected the fewest and, above it, the most"),
        ({"workers": (2, 2)}, r"workers is \[2, 2\]; expected the fewest and"),
        ({"cpus_per_worker": 0}, "cpus_per_worker is 0; expected at least 1"),
        ({"gpus_per_worker": -1}, "gpus_per_worker is -1; expected 0 or more"),
        ({"gpus_per_worker": 1.5}, r"gpus_per_worker is 1\.5, and only .*; expected a whole"),
        ({"accelerator_type": "L4"}, "accelerator_type is L4, but gpus_per_worker is 0"),
        ({"max_failures": -1}, "max_failures is -1; expected at least 0"),
        ({"wait_seconds": -1}, "wait_seconds is -1; expected 0 or more"),
        ({"checkpoint_interval_seconds": -1}, "checkpoint_interval_seconds is -1; expected 0"),
        ({"checkpoint_interval_rounds": 0}, "checkpoint_interval_rounds is 0; expected at least"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0; expected at least 1"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**fields)


def test_groups_need_a_number_of_workers_that_stays() -> None:
    with pytest.raises(ValueError, match=r"workers_per_group is 2, but workers is \(2, 4\), of"):
        GroupedClusterConfig(workers=(2, 4), workers_per_group=2)
    assert GroupedClusterConfig(workers=(2, 4)).max_workers == 4


@pytest.mark.parametrize(("workers", "fewest", "most"), [(3, 3, 3), ((2, 8), 2, 8)])
def test_workers_are_a_number_or_a_range(
    workers: int | tuple[int, int], fewest: int, most: int
) -> None:
    config = ClusterConfig(workers=workers)
    assert (config.min_workers, config.max_workers) == (fewest, most)
    assert config.is_elastic == (fewest < most)


def test_a_range_survives_the_command_line_and_the_way_to_a_recipe_and_back() -> None:
    command = ["pretrain", "--model.architecture", TINY.architecture, "--output", "runs/x"]
    command += ["--model.image_size", "8"]
    command += ["--original.train", ORIGINAL.train, "--original.test", ORIGINAL.test]
    command += ["--training.shards", "8", "--cluster.workers", "[2, 8]"]
    _, job = parse(command)
    assert job.cluster.workers == (2, 8)
    assert to_plain(job)["cluster"]["workers"] == [2, 8]
    assert recipe_from(to_plain(job), Pretrain) == job


L4, A10 = ({"CPU": 8.0, "GPU": 4.0, f"accelerator_type:{name}": 1.0} for name in ("L4", "A10"))


@pytest.mark.parametrize(
    ("nodes", "fields", "expected"),
    [
        ([{"CPU": 3}, {"CPU": 3}], {"cpus_per_worker": 2}, 2),
        ([{"memory": 1e9}], {}, 0),
        ([{"CPU": 8, "GPU": 1}], {"gpus_per_worker": 0.1}, 8),
        ([{"CPU": 20, "GPU": 1}], {"gpus_per_worker": 0.1}, 10),
        ([L4, A10], {"gpus_per_worker": 1}, 8),
        ([L4, A10], {"gpus_per_worker": 1, "accelerator_type": "L4"}, 4),
        ([L4, A10], {"gpus_per_worker": 1, "accelerator_type": "H100"}, 0),
    ],
)
def test_a_worker_fits_on_one_machine_or_not_at_all(
    nodes: list[dict[str, float]], fields: dict[str, Any], expected: int
) -> None:
    assert room(nodes, ClusterConfig(**fields)) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"workers": 3, "cpus_per_worker": 4},
            "cluster.workers is 3 of 4 CPUs each, but the cluster has room for 2 (its machines: 2 "
            "with 6 CPUs); expected at most 2 workers, smaller ones, or autoscaling: true",
        ),
        (
            {"workers": (3, 5), "cpus_per_worker": 4},
            "cluster.workers is (3, 5) of 4 CPUs each, but the cluster has room for 2",
        ),
        (
            {"gpus_per_worker": 1, "accelerator_type": "L4"},
            "cluster.workers is 1 of 1 CPUs and 1 L4s each, but the cluster has room for 0",
        ),
    ],
)
def test_too_small_a_cluster_is_described(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        require_room([{"CPU": 6}, {"CPU": 6}], ClusterConfig(**fields))
    assert message in str(refusal.value)


def test_machines_are_described_by_what_matters() -> None:
    with pytest.raises(UsageError, match="machines: 1 with 8 CPUs, 4 GPUs, L4; 1 with 2 CPUs"):
        require_room([L4, {"CPU": 2, "node:1.2.3.4": 1}, {}], ClusterConfig(workers=20))


def test_fewer_than_the_most_are_enough_to_begin_with() -> None:
    assert require_room([{"CPU": 3}], ClusterConfig(workers=(2, 8))) == 3


@pytest.mark.parametrize(
    ("gpus", "backend"), [(0, "gloo"), (0.5, "gloo"), (1, "nccl"), (2, "nccl")]
)
def test_nccl_where_every_worker_has_a_gpu_of_its_own(gpus: float, backend: str) -> None:
    assert collective_backend(ClusterConfig(gpus_per_worker=gpus)) == backend


@pytest.mark.parametrize(("gpus", "share"), [(0.5, 0.475), (1, None), (0, None)])
def test_a_worker_uses_what_it_was_given(
    gpus: float, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: dict[str, float] = {}
    monkeypatch.setattr("torch.set_num_threads", lambda n: used.update(torch=n))
    monkeypatch.setattr("pyarrow.set_cpu_count", lambda n: used.update(arrow=n))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(
        "torch.cuda.set_per_process_memory_fraction", lambda part: used.update(gpu=part)
    )
    prepare(ClusterConfig(cpus_per_worker=3, gpus_per_worker=gpus))
    expected = {"torch": 3, "arrow": 3} | ({} if share is None else {"gpu": share})
    assert used == pytest.approx(expected)


def test_ray_that_does_not_start_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def starve(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nlogs follow")  # noqa: TRY002

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", starve)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(JobError, match=r"did not start on this machine \(The current node timed"):
        connect(ClusterConfig())
