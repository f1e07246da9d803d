"""Models as they are kept: what is committed for one, and a model made of it again.

A committed model is `model.safetensors`, or several such files and their index, under the names of
the library's own network, and a description in the manifest. Of a classifier: architecture, class
count and class names. Of a denoiser: what diffusers needs to build it again.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from protection.denoisers import Blueprint, Denoiser, DenoiserConfig, build_denoiser, from_blueprint
from protection.denoising import DENOISING
from protection.models import Classifier, ModelConfig, build_model, load_weights
from protection.released import ReleasedModel
from protection.seeds import seeded
from protection.tasks import CLASSIFICATION, Task
from ray_jobs.errors import UsageError
from ray_jobs.pipeline_files import write_pipeline
from storage.checkpoints import read_weights, stage_weights, tensors_to_bytes
from storage.commit import commit, read_manifest
from storage.errors import AlreadyCommittedError
from storage.inventory import WEIGHTS_SUFFIXES
from storage.manifest import Manifest, Part
from storage.weight_shards import SHARD_BYTES

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


def from_scratch(description: ModelDescription, *, seed: int) -> ReleasedModel:
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
    """Model as described, with the weights at a location or in .safetensors files.

    Raises:
        ValueError: the weights are another architecture's or another class count's.
        StorageError: they cannot be read.
    """
    model = from_scratch(description, seed=0)
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


def check_described(
    field: str, model: str, network: ModelConfig | None, denoiser: DenoiserConfig | None = None
) -> None:
    """Refuse a model that is described twice, or not at all.

    Args:
        field: of the recipe, that names the model.
        model: a committed location, which describes itself, or a file of weights.
        network: what a file holds the weights of, if of a classifier.
        denoiser: likewise, if of a diffusion model.

    Raises:
        ValueError: the one has a description, or the other none, or two.
    """
    is_file = model.endswith(WEIGHTS_SUFFIXES)
    if network is not None and denoiser is not None:
        raise ValueError(
            f"network and denoiser are both given, but {model} holds the weights of one model; "
            "expected one of them"
        )
    if is_file and network is None and denoiser is None:
        raise ValueError(
            f"{field} is {model}, which does not say what network it is of; expected network: "
            "{architecture, image_size, ...} or denoiser: {image_size, ...} beside it"
        )
    if not is_file and (network or denoiser) is not None:
        name = "network" if network else "denoiser"
        raise ValueError(
            f"{name} is given, but {field} is {model}, a committed location that describes "
            f"itself; expected {name}: null (or a .safetensors file)"
        )


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
    weights: Mapping[str, Tensor] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Manifest:
    """Publish ``model`` at ``output`` with its description and the ``facts`` of how it was made.

    ``staged`` are further parts, staged at ``output`` before. ``weights`` are the network's, in one
    piece, where those of ``model`` are in parts over a group of workers. Weights of more than
    ``shard_bytes`` come into several files.

    Raises:
        AlreadyCommittedError: something else is committed at ``output``.
    """
    described = {
        **_described(model, description),
        "num_classes": description.num_classes,
        "class_names": description.class_names,
    }
    parts = stage_weights(
        output, model.network.state_dict() if weights is None else weights, shard_bytes=shard_bytes
    )
    try:
        manifest = commit(
            output,
            {**parts, **(staged or {})},
            kind=MODEL_KIND,
            description={**facts, "model": described},
        )
    except AlreadyCommittedError:
        # A worker that dies between its commit and the end of the run commits once more.
        manifest = read_manifest(output)
        if any(manifest.parts.get(name) != part for name, part in parts.items()):
            raise
    write_pipeline(output, manifest=manifest)
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
