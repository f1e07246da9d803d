"""Protecting what is large: savings, and refusal before the start, by the whole job without Ray."""

import dataclasses
from pathlib import Path

import pytest
import torch

import ray_jobs.large_models
from protection.savings import MemoryConfig
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.errors import HopelessError
from ray_jobs.free_memory import _container, _machine, free_bytes
from ray_jobs.protect_model import ProtectModel, train_loop_per_worker
from storage.checkpoints import read_weights
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, run_here

SOPHON = SophonConfig(
    rounds=2,
    episode_length=2,
    query_size=8,
    adversary=[StrategyFamily(methods=["all_layers", "lora"], batch_sizes=[16])],
    reinforcement_batch_size=32,
    validation_images=32,
)


def a_job(model: str, output: Path, **changes: object) -> ProtectModel:
    return ProtectModel(
        model=model,
        original=ORIGINAL,
        restricted=[RESTRICTED],
        output=str(output),
        sophon=dataclasses.replace(SOPHON, **changes),
    )


def test_savings_that_are_exact_make_the_same_model(model: str, tmp_path: Path) -> None:
    weights = []
    for number, memory in enumerate((MemoryConfig(), MemoryConfig(host_copies=True))):
        job = a_job(model, tmp_path / str(number), memory=memory)
        weights.append(read_weights(run_here(job, train_loop_per_worker, verb="protect-model")))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    before = read_weights(model)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in weights[0].items())


def test_what_does_not_fit_is_refused_before_a_round(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_jobs.large_models, "free_bytes", lambda *_, **__: 1000.0)
    with pytest.raises(HopelessError, match=r"needs 0\.00 GiB during .* that has 0\.00 GiB free"):
        run_here(a_job(model, tmp_path / "out"), train_loop_per_worker, verb="protect-model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("sophon", "message"),
    [
        ({}, r"workers_per_group is 2, but sophon\.memory\.batch_parts is 1"),
        ({"memory": MemoryConfig(batch_parts=2)}, r"sophon\.reinforcement_shards is 1, which the"),
        (
            {"memory": MemoryConfig(batch_parts=2), "reinforcement_shards": 2},
            r"workers is 4, but sophon\.episodes_per_round is 1.*groups of them",
        ),
    ],
)
def test_a_group_without_work_for_each_is_refused(
    sophon: dict[str, object], message: str, tmp_path: Path
) -> None:
    job = a_job("m", tmp_path / "out", **sophon)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(job, cluster=GroupedClusterConfig(workers=4, workers_per_group=2))


def test_free_memory_is_what_the_machine_and_its_container_leave(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    two, one = (free_bytes(cpu, workers_here=n, gpus_per_worker=0) for n in (2, 1))
    assert two is None or one == pytest.approx(2 * two, rel=0.2)  # others use the machine, too
    meminfo = tmp_path / "meminfo"
    assert _machine(meminfo) is None
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:    5 kB\n")
    assert _machine(meminfo) == 5 * 1024
    assert _container(tmp_path) is None
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert _container(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert _container(tmp_path) == 500
