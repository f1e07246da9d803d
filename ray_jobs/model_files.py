"""Models as they are kept: what is committed for one, and a classifier made of it again.

A committed model is `model.safetensors`, or several such files and their index, under the names of
the library's own network, and a
description in the manifest: architecture, class count, class names, and where it came from.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from protection.models import Classifier, ModelConfig, build_model, load_weights
from protection.seeds import seeded
from ray_jobs.errors import UsageError
from storage.checkpoints import read_weights, stage_weights, tensors_to_bytes
from storage.commit import commit, read_manifest
from storage.errors import AlreadyCommittedError
from storage.manifest import Manifest, Part
from storage.weight_shards import SHARD_BYTES

MODEL_KIND: Final = "model"


class ModelDescription(NamedTuple):
    """What a model is, apart from its weights."""

    config: ModelConfig
    num_classes: int
    class_names: list[str]


def new_model(config: ModelConfig, *, num_classes: int, seed: int) -> Classifier:
    """Classifier with weights drawn from ``seed``; the same on every worker."""
    with seeded(seed, "weights", device=torch.device("cpu")):
        model = build_model(config, num_classes=num_classes)
    # The layout that convolutions compute in, on CPU and GPU: a step of a small ResNet takes a
    # quarter less time on a CPU than with a conversion around every layer.
    return model.to(memory_format=torch.channels_last)


def model_from(description: ModelDescription, *, weights: str) -> Classifier:
    """Classifier as described, with the weights at a location or in .safetensors files.

    Raises:
        ValueError: the weights are another architecture's or another class count's.
        StorageError: they cannot be read.
    """
    config = dataclasses.replace(description.config, pretrained=False)
    model = new_model(config, num_classes=description.num_classes, seed=0)
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
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    config = {name: value for name, value in model["config"].items() if name in known}
    for name in ("pixel_mean", "pixel_std"):
        config[name] = tuple(config[name])
    return ModelDescription(ModelConfig(**config), model["num_classes"], model["class_names"])


def weights_to_bytes(model: Classifier) -> bytes:
    """Safetensors file of ``model``'s network, under the names of its own library."""
    return tensors_to_bytes(model.network.state_dict())


def commit_model(
    output: str,
    model: Classifier,
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
    config = dataclasses.asdict(description.config)
    # As resolved: a reader must not need the library's table of pre-trained weights to normalise
    # pixels.
    config["pixel_mean"] = model.pixel_mean.flatten().tolist()
    config["pixel_std"] = model.pixel_std.flatten().tolist()
    described = {
        "config": config,
        "num_classes": description.num_classes,
        "class_names": description.class_names,
    }
    parts = stage_weights(
        output, model.network.state_dict() if weights is None else weights, shard_bytes=shard_bytes
    )
    try:
        return commit(
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
        return manifest
