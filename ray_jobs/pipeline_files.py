"""A committed denoiser as a folder that diffusers loads, without Ringfence.

`DDPMPipeline.from_pretrained` wants its own names, and a commit's parts have theirs. So beside the
commit lies a copy under diffusers' names. The commit is what counts, and what is verified; the
copy is made from it, and can be made again.
"""

import json
from typing import Any, Final

from storage.blobs import open_blobs
from storage.commit import read_manifest, read_part
from storage.inventory import WEIGHTS_NAME
from storage.location import Location, parse_location
from storage.manifest import Manifest

# Of the folder: diffusers takes it for a pipeline by this file, so it is written last.
INDEX: Final = "model_index.json"


def write_pipeline(location: str | Location, *, manifest: Manifest | None = None) -> None:
    """Write diffusers' files beside the denoiser that is committed at ``location``, if it is one.

    Writing them again changes nothing. ``manifest`` is that of the commit, where it is known.

    Raises:
        StorageError: nothing is committed there, or it is damaged.
    """
    location = parse_location(location)
    manifest = manifest or read_manifest(location)
    model: Any = manifest.description.get("model")
    if not isinstance(model, dict) or "unet" not in model:
        return
    unet, scheduler = model["unet"], model["scheduler"]
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": unet.get("_diffusers_version"),
        "unet": ["diffusers", unet["_class_name"]],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    files = {
        "unet/config.json": _to_bytes(unet),
        "unet/diffusion_pytorch_model.safetensors": read_part(
            location, WEIGHTS_NAME, manifest=manifest
        ),
        "scheduler/scheduler_config.json": _to_bytes(scheduler),
        INDEX: _to_bytes(index),
    }
    blobs = open_blobs(location)
    for name, data in files.items():
        blobs.put(name, data)


def _to_bytes(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2, sort_keys=True).encode() + b"\n"
