import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray.train.v2.api.config import ScalingConfig
from ray.train.v2.torch.torch_trainer import TorchTrainer

from protection.models import Classifier, ModelConfig
from ray_jobs.cluster import FAILURE
from ray_jobs.domains import DomainConfig
from ray_jobs.model_files import ModelDescription, commit_model, new_model, weights_to_bytes
from ray_jobs.runs import begin, find_run
from ray_jobs.trajectories import TRAJECTORY
from storage.commit import stage
from storage.location import Location
from tests.conftest import TinyNetwork
from tests.storage.conftest import location, s3_endpoint, s3_location, tmp_path_location

__all__ = [
    "location",
    "s3_endpoint",
    "s3_location",
    "tmp_path_location",
]  # of the storage tests

ROOT = Path(__file__).parent.parent.parent
TINY = ModelConfig(architecture="tests.conftest:TinyNetwork", image_size=8)
ORIGINAL = DomainConfig(train="digits:train", test="digits:test", classes=[0, 1, 2, 3, 4])
RESTRICTED = DomainConfig(train="digits:train", test="digits:test", classes=[5, 6, 7, 8, 9])


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One embedded cluster of three logical CPUs for the whole test session; gives its address."""
    import ray

    from ray_jobs.connection import announced_dashboard_port
    from ray_jobs.machine import TRAIN_ENVIRONMENT

    os.environ.update(TRAIN_ENVIRONMENT)
    with pytest.MonkeyPatch.context() as patch:
        # What a machine of the cluster has, workers of every driver have: keys of the S3 server in
        # this process, which takes any.
        patch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("OMP_NUM_THREADS", "1")
        # By default the process with all other tests goes before them, and this one waits.
        patch.setenv("RAY_worker_niceness", "0")
        context = ray.init(
            address="local",
            num_cpus=3,
            log_to_driver=False,
            object_store_memory=200 * 2**20,
            dashboard_port=announced_dashboard_port(),
        )
    yield context.address_info["gcs_address"]
    ray.shutdown()


def run_here(job: Any, loop: Callable[[dict[str, Any]], Any], *, verb: str) -> Path:
    """Run the whole train loop of a job in this process; returns its output, a local one.

    What any number of workers make must equal what this makes, and it takes no start of workers.
    """
    return location_made_here(job, loop, verb=verb).path


def location_made_here(job: Any, loop: Callable[[dict[str, Any]], Any], *, verb: str) -> Location:
    """As `run_here`, wherever the output is."""
    this_run = find_run(job, verb=verb, parents=job.parents())
    begin(this_run)
    threads = torch.get_num_threads()
    torch.set_num_threads(job.cluster.cpus_per_worker)  # their number decides how sums round
    try:
        config = {"job": job, "run": this_run}
        trainer = TorchTrainer(
            loop, train_loop_config=config, scaling_config=ScalingConfig(num_workers=0)
        )
        result: Any = trainer.fit()
    finally:
        torch.set_num_threads(threads)
    assert FAILURE not in result.return_value, result.return_value
    return this_run.output


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Location of a committed tiny classifier of five classes, untrained."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        classifier = Classifier(TinyNetwork(5, dropout=0.2), num_classes=5)
    location = str(tmp_path_factory.mktemp("models") / "tiny")
    config = ModelConfig(
        architecture=TINY.architecture, image_size=TINY.image_size, options={"dropout": 0.2}
    )
    names = [str(digit) for digit in range(5)]
    commit_model(location, classifier, ModelDescription(config, 5, names), facts={})
    return location


@pytest.fixture(scope="session")
def trajectory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Location of a tiny classifier of ten digits with a trajectory of four, all untrained."""
    location = str(tmp_path_factory.mktemp("models") / "trajectory")
    models = [new_model(TINY, num_classes=10, seed=seed) for seed in range(4)]
    staged = {
        name: stage(location, name, weights_to_bytes(model))
        for number, model in enumerate(models)
        if (name := f"checkpoint-{number + 1:04d}.safetensors")
    }
    description = ModelDescription(TINY, 10, [str(digit) for digit in range(10)])
    commit_model(location, models[-1], description, facts={TRAJECTORY: [*staged]}, staged=staged)
    return location
