"""Models as they are kept: what is committed for one, and a model made of it again.

A committed model is `model.safetensors` under the names of the library's own network, and a
description in the manifest. Of a classifier: architecture, class count and class names. Of a
denoiser: what diffusers needs to build it again.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import nn

from protection.denoisers import Blueprint, Denoiser, DenoiserConfig, build_denoiser, from_blueprint
from protection.denoising import DENOISING
from protection.models import Classifier, ModelConfig, build_model, load_weights
from protection.released import ReleasedModel
from protection.seeds import seeded
from protection.tasks import CLASSIFICATION, Task
from ray_jobs.errors import UsageError
from ray_jobs.pipeline_files import WEIGHTS_PART, write_pipeline
from storage.checkpoints import read_weights, tensors_to_bytes
from storage.commit import commit, read_manifest
from storage.errors import AlreadyCommittedError
from storage.manifest import Manifest, Part

MODEL_KIND: Final = "model"

ModelT = TypeVar("ModelT", bound=nn.Module)


class ModelDescription(NamedTuple):
    """What a model is, apart from its weights."""

    config: ModelConfig | Blueprint
    """Of a denoiser its blueprint."""
    num_classes: int
    """Of the original domain."""
    class_names: list[str]

    @property
    def task(self) -> Task:
        """What the model is trained to do."""
        return DENOISING if isinstance(self.config, Blueprint) else CLASSIFICATION

    @property
    def model_classes(self) -> int | None:
        """Outputs of the model's head; None where it has none."""
        return self.num_classes if self.task.has_classes else None


def new_model(config: ModelConfig, *, num_classes: int, seed: int) -> Classifier:
    """Classifier with weights drawn from ``seed``; the same on every worker."""
    with seeded(seed, "weights", device=torch.device("cpu")):
        return _laid_out(build_model(config, num_classes=num_classes))


def new_denoiser(config: DenoiserConfig, *, seed: int) -> Denoiser:
    """Denoiser with weights drawn from ``seed``, or those of its source; alike on every worker."""
    with seeded(seed, "weights", device=torch.device("cpu")):
        return _laid_out(build_denoiser(config))


def drawn(description: ModelDescription, *, seed: int) -> ReleasedModel:
    """Model as described, with weights drawn from ``seed``, whatever it was made from."""
    if isinstance(description.config, Blueprint):
        with seeded(seed, "weights", device=torch.device("cpu")):
            return _laid_out(from_blueprint(description.config))
    config = dataclasses.replace(description.config, pretrained=False)
    return new_model(config, num_classes=description.num_classes, seed=seed)


def _laid_out(model: ModelT) -> ModelT:
    # The layout that convolutions compute in, on CPU and GPU: a step of a small ResNet takes a
    # quarter less time on a CPU than with a conversion around every layer.
    return model.to(memory_format=torch.channels_last)


def model_from(description: ModelDescription, *, weights: str) -> ReleasedModel:
    """Model as described, with the weights at a location or in a .safetensors file.

    Raises:
        ValueError: the weights are another architecture's or another class count's.
        StorageError: they cannot be read.
    """
    model = drawn(description, seed=0)
    load_weights(model, read_weights(weights), source=weights)
    return model


def describe(location: str) -> ModelDescription:
    """Read what the committed model at ``location`` is.

    Raises:
        StorageError: nothing is committed there.
        UsageError: what is committed there is no model.
    """
    manifest = read_manifest(location)
    if manifest.kind != MODEL_KIND:
        raise UsageError(
            f"{location} is a committed {manifest.kind}; expected the location of a model, as "
            "pretrain or protect-model printed it"
        )
    model: Any = manifest.description["model"]
    return ModelDescription(_config_in(model), model["num_classes"], model["class_names"])


def _config_in(model: Any) -> ModelConfig | Blueprint:
    if "unet" in model:
        return Blueprint(model["unet"], model["scheduler"])
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    config = {name: value for name, value in model["config"].items() if name in known}
    for name in ("pixel_mean", "pixel_std"):
        config[name] = tuple(config[name])
    return ModelConfig(**config)


def weights_to_bytes(model: ReleasedModel) -> bytes:
    """Safetensors file of ``model``'s network, under the names of its own library."""
    return tensors_to_bytes(model.network.state_dict())


def commit_model(
    output: str,
    model: ReleasedModel,
    description: ModelDescription,
    *,
    facts: Mapping[str, object],
    staged: Mapping[str, Part] | None = None,
) -> Manifest:
    """Publish ``model`` at ``output`` with its description and the ``facts`` of how it was made.

    ``staged`` are further parts, staged at ``output`` before.

    Raises:
        AlreadyCommittedError: something else is committed at ``output``.
    """
    described = {
        **_described(model, description),
        "num_classes": description.num_classes,
        "class_names": description.class_names,
    }
    weights = weights_to_bytes(model)
    try:
        manifest = commit(
            output,
            {WEIGHTS_PART: weights, **(staged or {})},
            kind=MODEL_KIND,
            description={**facts, "model": described},
        )
    except AlreadyCommittedError:
        # A worker that dies between its commit and the end of the run commits once more.
        manifest = read_manifest(output)
        part = manifest.parts.get(WEIGHTS_PART)
        if part is None or part.sha256 != hashlib.sha256(weights).hexdigest():
            raise
    write_pipeline(output)
    return manifest


def _described(model: ReleasedModel, description: ModelDescription) -> dict[str, object]:
    if isinstance(model, Denoiser):
        return dict(vars(model.blueprint))
    assert isinstance(model, Classifier)
    assert isinstance(description.config, ModelConfig)
    config = dataclasses.asdict(description.config)
    # As resolved: a reader must not need the library's table of pre-trained weights to normalise
    # pixels.
    config["pixel_mean"] = model.pixel_mean.flatten().tolist()
    config["pixel_std"] = model.pixel_std.flatten().tolist()
    return {"config": config}
