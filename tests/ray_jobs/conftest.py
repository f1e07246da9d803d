import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from protection.models import Classifier, ModelConfig
from ray_jobs.domains import DomainConfig
from ray_jobs.model_files import ModelDescription, commit_model, new_model, weights_to_bytes
from ray_jobs.trajectories import TRAJECTORY
from storage.commit import stage
from tests.conftest import TinyNetwork
from tests.storage.conftest import s3_endpoint, s3_location

__all__ = ["s3_endpoint", "s3_location"]  # fixtures of the storage tests, used here as well

ROOT = Path(__file__).parent.parent.parent
TINY = ModelConfig(architecture="tests.conftest:TinyNetwork", image_size=8)
ORIGINAL = DomainConfig(train="digits:train", test="digits:test", classes=[0, 1, 2, 3, 4])
RESTRICTED = DomainConfig(train="digits:train", test="digits:test", classes=[5, 6, 7, 8, 9])


@pytest.fixture(scope="session")
def cluster() -> Iterator[str]:
    """One embedded cluster of three logical CPUs for the whole test session; gives its address."""
    import ray

    from ray_jobs.cluster import _TRAIN_ENVIRONMENT

    os.environ.update(_TRAIN_ENVIRONMENT)
    context = ray.init(
        address="local",
        num_cpus=3,
        log_to_driver=False,
        object_store_memory=200 * 2**20,
        runtime_env={
            "env_vars": {
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                # Of the S3 server in the test process; it takes any key.
                "AWS_ACCESS_KEY_ID": "key-of-the-tests",
                "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
                "AWS_EC2_METADATA_DISABLED": "true",
            }
        },
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()


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
