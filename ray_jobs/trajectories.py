"""The trajectory of a pre-training: kept while it runs, committed with the model, read as members.

A checkpoint's weights are staged at the output as soon as its epoch is over, and noted in the run's
own place; the model's commit names them all. So a killed run keeps the checkpoints it has, and
nobody sees a trajectory with a gap.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from protection.models import Classifier, load_weights
from protection.sep.trajectory import evenly_spaced, freeze
from protection.training import EpochMetrics, TrainingState
from ray_jobs.errors import UsageError
from ray_jobs.model_files import ModelDescription, describe, from_scratch, weights_to_bytes
from ray_jobs.runs import Run
from storage.blobs import open_blobs
from storage.cache import read_cached_part
from storage.checkpoints import tensors_from_bytes
from storage.commit import read_manifest, stage
from storage.manifest import Manifest, Part

TRAJECTORY: Final = "trajectory"
"""Key of a model's description: names of the parts that are its trajectory, in training order."""


def keeping_trajectory(
    epochs: Iterator[EpochMetrics],
    state: TrainingState,
    run: Run,
    *,
    checkpoints: int,
    num_epochs: int,
) -> Iterator[EpochMetrics]:
    """Pass ``epochs`` on; stage ``state``'s weights after each of ``checkpoints`` of them.

    Args:
        epochs: of a training run, from wherever it resumes.
        state: of that run, current at every yield.
        run: where to stage and to note.
        checkpoints: how many, evenly spaced, the last epoch among them.
        num_epochs: of the whole run.
    """
    kept = set(evenly_spaced(checkpoints, total=num_epochs))
    for metrics in epochs:
        # Before the yield: training state that is saved after it finds its checkpoints noted.
        if metrics.epoch in kept:
            name = f"checkpoint-{metrics.epoch + 1:04d}.safetensors"
            part = stage(str(run.output), name, weights_to_bytes(state.model))
            open_blobs(run.state).put(f"{TRAJECTORY}/{name}.json", json.dumps(vars(part)).encode())
        yield metrics


def noted_parts(run: Run) -> dict[str, Part]:
    """Return the staged checkpoints of ``run`` by name, in training order."""
    blobs = open_blobs(run.state)
    return {
        note.removeprefix(f"{TRAJECTORY}/").removesuffix(".json"): Part(
            **json.loads(blobs.get(note))
        )
        for note in blobs.list(f"{TRAJECTORY}/")
    }


class Trajectory(NamedTuple):
    """A committed trajectory; nothing but its manifest was read yet."""

    location: str
    description: ModelDescription
    checkpoints: Sequence[str]
    """Names of parts in training order."""
    manifest: Manifest

    def load(self, number: int) -> Classifier:
        """Return checkpoint ``number`` as a frozen classifier on the CPU, its digest checked.

        Raises:
            StorageError: it cannot be read, or is not what was committed.
        """
        name = self.checkpoints[number]
        data = read_cached_part(self.location, name, manifest=self.manifest)
        model = from_scratch(self.description, seed=0)
        assert isinstance(model, Classifier)  # pretrain keeps no trajectory of others
        weights = tensors_from_bytes(data, source=f"{self.location}/{name}")
        load_weights(model, weights, source=f"{self.location}/{name}")
        return freeze(model)


def open_trajectory(location: str) -> Trajectory:
    """Open the trajectory that was committed with the model at ``location``.

    Raises:
        StorageError: nothing is committed there.
        UsageError: what is there has no trajectory.
    """
    description = describe(location)
    manifest = read_manifest(location)
    checkpoints = manifest.description.get(TRAJECTORY)
    if not isinstance(checkpoints, list) or not checkpoints:
        raise UsageError(
            f"trajectory is {location}, a model whose checkpoints were not kept; expected one that "
            "pretrain made with trajectory_checkpoints: 30"
        )
    return Trajectory(location, description, checkpoints, manifest)
