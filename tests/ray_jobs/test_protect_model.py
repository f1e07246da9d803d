"""The main job on a real cluster: the same weights from any number of workers, through kills."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml

from protection.models import load_weights
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from ray_jobs.cli import main
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.errors import UsageError
from ray_jobs.model_files import commit_model, describe, model_from
from ray_jobs.protect_model import ProtectModel, run, train_loop_per_worker
from ray_jobs.reporting import METRICS_FILE
from storage.blobs import open_blobs
from storage.checkpoints import read_weights
from storage.commit import is_committed, read_manifest
from storage.errors import AlreadyCommittedError
from storage.location import Location
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, ROOT, run_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# Long enough to be killed in the middle, short enough for a test.
ROUNDS = 24
SOPHON = SophonConfig(
    rounds=ROUNDS,
    episodes_per_round=6,
    episode_length=4,
    query_size=8,
    adversary=[
        StrategyFamily(
            methods=["all_layers", "redrawn_head"],
            optimizers=["sgd", "adam"],
            finetune_lrs=[0.01],
            batch_sizes=[16],
        )
    ],
    reinforcement_batch_size=32,
    reinforcement_shards=3,
    max_original_drop=1.0,
)


def a_job(model: str, output: Path, *, workers: int) -> ProtectModel:
    return ProtectModel(
        model=model,
        original=ORIGINAL,
        restricted=[RESTRICTED],
        output=str(output),
        sophon=SOPHON,
        cluster=GroupedClusterConfig(
            workers=workers, checkpoint_interval_seconds=0, keep_best_by="original_accuracy"
        ),
    )


def write_recipe(job: ProtectModel, folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(job)))))
    return str(path)


def rows(output: Path) -> list[dict[str, object]]:
    path = output.parent / f"{output.name}.run" / METRICS_FILE
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_round(output: Path, round_index: int) -> None:
    deadline = time.monotonic() + 300
    while not any(row["round_index"] == round_index for row in rows(output)):
        assert time.monotonic() < deadline, f"round {round_index} never came"
        time.sleep(0.1)


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for name, tensor in a.items():
        difference = (tensor.double() - b[name].double()).norm()
        assert difference <= 1e-5 * tensor.double().norm(), name


@pytest.fixture(scope="module")
def undisturbed(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes without a cluster."""
    job = a_job(model, tmp_path_factory.mktemp("undisturbed") / "protected", workers=1)
    return run_here(job, train_loop_per_worker, verb="protect-model")


def test_committed_output_is_refused(undisturbed: Path, model: str) -> None:
    with pytest.raises(AlreadyCommittedError, match=f"output is {undisturbed}.*a new location"):
        run(a_job(model, undisturbed, workers=1))


def assert_manifest_says_how_the_model_was_made(output: Path, model: str) -> None:
    manifest = read_manifest(str(output))
    assert manifest.kind == "model"
    description = manifest.description
    assert description["recipe"]["command"] == "protect-model"
    assert description["recipe"]["sophon"]["rounds"] == ROUNDS
    assert description["parents"]["model"] == model
    assert description["parents"]["model_commit"] == read_manifest(model).commit_id
    assert set(description["metrics"]) == {
        f"{start}_{split}_accuracy"
        for start in ("protected", "unprotected")
        for split in ("validation", "test")
    }


def test_killed_worker_of_three_costs_time_and_nothing_else(
    cluster: str,
    undisturbed: Path,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another cluster may run on this machine, and list_actors would not know which to ask.
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    from ray.util.state import list_actors

    output = tmp_path / "protected"
    killed: list[int] = []

    def kill_a_worker() -> None:
        wait_for_round(output, 5)
        filters = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
        pid = list_actors(filters=filters, detail=True)[0].pid
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    assert run(a_job(model, output, workers=3)) == str(output)
    killer.join()
    assert killed
    assert_same(read_weights(str(undisturbed)), read_weights(str(output)))
    assert_manifest_says_how_the_model_was_made(output, model)
    shown = rows(output)
    assert {row["round_index"] for row in shown} == set(range(ROUNDS))
    assert len(shown) < 2 * ROUNDS  # it went on from a checkpoint, not from the start
    assert shown[-1]["eta_seconds"] == 0
    state = output.parent / "protected.run"
    assert list((state / "tensorboard").iterdir())
    # The two best, of equal ones the later, and the newest.
    best = sorted((row["original_accuracy"], row["round_index"] + 1) for row in shown)[-2:]
    kept = {int(path.name.split("-")[1]) for path in (state / "train").glob("round-*")}
    assert {number for _, number in best} <= kept
    assert len(kept) <= 4  # and one that the crash left unregistered


@pytest.mark.s3
def test_killed_driver_goes_on_from_the_newest_whole_checkpoint_on_s3(
    cluster: str,
    undisturbed: Path,
    model: str,
    s3_location: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # logs of a run on S3 are kept in the working directory
    output = s3_location / "protected"
    job = dataclasses.replace(a_job(model, tmp_path, workers=2), output=str(output))
    recipe = write_recipe(job, tmp_path)
    command = [sys.executable, "-m", "ray_jobs.cli", "protect-model", "--config", recipe]
    environment = {**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    wait_for_round(tmp_path / "protected", 5)
    driver.kill()
    driver.wait()
    assert not is_committed(output)

    other = dataclasses.replace(job, sophon=dataclasses.replace(SOPHON, rounds=ROUNDS + 1))
    with pytest.raises(UsageError, match=rf"sophon\.rounds was {ROUNDS}, is {ROUNDS + 1}"):
        run(other)

    kept = open_blobs(output.sibling(".run"))
    newest = max(name for name in kept.list("train/round-") if name.endswith("MANIFEST.json"))
    checkpoint = newest.split("/")[1]
    (tensors,) = (n for n in kept.list(f"train/{checkpoint}/") if n.endswith(".safetensors"))
    kept.put(tensors, b"not what was committed")
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout.strip() == str(output)
    assert f"resuming the run in {output.sibling('.run')}" in again.stderr
    assert f"checkpoint {checkpoint} is passed over: " in again.stderr
    (resumed,) = re.findall(r"resuming from round-0*(\d+)-try-1\n", again.stderr)
    assert 1 <= int(resumed) < int(checkpoint.split("-")[1])
    first_shown = int(re.search(r"\bsophon (\d+)/", again.stderr)[1])
    # Less than the next where the kill kept rows from being shown.
    assert -3 <= first_shown - int(resumed) <= 1
    assert_same(read_weights(str(undisturbed)), read_weights(str(output)))


@pytest.mark.parametrize(
    ("cluster_config", "message"),
    [
        ({"workers": 6}, "workers is 6 of 1 CPUs each, but the cluster has room for 3 .*at most 3"),
        ({"gpus_per_worker": 1}, "1 CPUs and 1 GPUs each, but the cluster has room for 0 "),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_at_once(
    cluster: str, cluster_config: dict[str, int], message: str, model: str, tmp_path: Path
) -> None:
    job = dataclasses.replace(
        a_job(model, tmp_path / "protected", workers=1),
        cluster=GroupedClusterConfig(**cluster_config),
    )
    with pytest.raises(UsageError, match=message):
        run(job)
    assert not list(tmp_path.iterdir())  # nothing half-written


def test_broken_weights_fail_with_one_message_and_no_retry(
    cluster: str, tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = model_from(describe(model), weights=model)
    weights = broken.network.state_dict()
    weights["fc.bias"] = weights["fc.bias"] * torch.nan
    load_weights(broken, weights, source="test")
    location = str(tmp_path / "broken")
    commit_model(location, broken, describe(model), facts={})
    recipe = write_recipe(a_job(location, tmp_path / "protected", workers=1), tmp_path)
    assert main(["protect-model", "--config", recipe]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "training loss is nan in the reinforcement of round 0" in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "protected").exists()
