"""What small jobs start from: halves of the digits, and what was never trained on them."""

from protection.models import Classifier, ModelConfig
from ray_jobs.domains import DomainConfig
from ray_jobs.model_files import ModelDescription, commit_model, new_model, weights_to_bytes
from ray_jobs.trajectories import TRAJECTORY
from storage.commit import stage
from storage.location import Location

_NAMES = [str(digit) for digit in range(10)]
# Original and restricted.
HALVES = [
    DomainConfig(train="digits:train", test="digits:test", classes=list(classes))
    for classes in (range(5), range(5, 10))
]


def commit_classifier(location: Location, network: ModelConfig) -> Classifier:
    """A classifier of the first five digits, which is also returned."""
    model = new_model(network, num_classes=5, seed=3)
    commit_model(str(location), model, ModelDescription(network, 5, _NAMES[:5]), facts={})
    return model


def commit_trajectory(location: Location, network: ModelConfig, members: int) -> list[Classifier]:
    """Checkpoints of a classifier of the ten digits, which are also returned."""
    models = [new_model(network, num_classes=10, seed=seed) for seed in range(members)]
    staged = {
        part: stage(location, part, weights_to_bytes(model))
        for number, model in enumerate(models)
        if (part := f"checkpoint-{number + 1:04d}.safetensors")
    }
    description, facts = ModelDescription(network, 10, _NAMES), {TRAJECTORY: [*staged]}
    commit_model(str(location), models[-1], description, facts=facts, staged=staged)
    return models
