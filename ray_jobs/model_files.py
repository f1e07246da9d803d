"""Models as they are kept: what is committed for one, and a classifier made of it again.

A committed model is `model.safetensors` under the names of the library's own network, and a
description in the manifest: architecture, class count, class names, and where it came from.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import torch

from protection.models import Classifier, ModelConfig, build_model, load_weights
from protection.seeds import seeded
from ray_jobs.errors import UsageError
from storage.checkpoints import read_weights, tensors_to_bytes
from storage.commit import commit, read_manifest
from storage.errors import AlreadyCommittedError
from storage.manifest import Manifest, Part

MODEL_KIND: Final = "model"
WEIGHTS_PART: Final = "model.safetensors"


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
    """Classifier as described, with the weights at a location or in a .safetensors file.

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


def check_described(field: str, model: str, network: ModelConfig | None) -> None:
    """Refuse a model that is described twice, or not at all.

    Args:
        field: of the recipe, that names the model.
        model: a committed location, which describes itself, or a .safetensors file.
        network: what a file holds the weights of.

    Raises:
        ValueError: the one has a description, or the other none.
    """
    is_file = model.endswith(".safetensors")
    if is_file and network is None:
        raise ValueError(
            f"{field} is {model}, which does not say what network it is of; expected network: "
            "{architecture, image_size, ...} beside it"
        )
    if not is_file and network is not None:
        raise ValueError(
            f"network is given, but {field} is {model}, a committed location that describes "
            "itself; expected network: null (or a .safetensors file)"
        )


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
) -> Manifest:
    """Publish ``model`` at ``output`` with its description and the ``facts`` of how it was made.

    ``staged`` are further parts, staged at ``output`` before.

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
    weights = weights_to_bytes(model)
    try:
        return commit(
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
        return manifest
