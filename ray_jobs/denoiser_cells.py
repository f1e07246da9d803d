"""What a model audit measures of a denoiser, beside what it measures of every model."""

import base64
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from protection.audit.generation import distances, error_by_timestep
from protection.denoisers import Denoiser
from protection.sampling import sample
from ray_jobs.errors import UsageError
from ray_jobs.preview import picture_rows
from ray_jobs.reporting import Row
from storage.image_dataset import ImageDataset

NUM_BINS: Final = 10
"""Parts of the noise schedule that errors are reported for."""
SAMPLES: Final = "samples"
"""Key of a row: images, to be drawn into the report's picture and not to be kept in it."""


@dataclass(frozen=True, kw_only=True)
class DenoisingAudit:
    """How images are drawn from the models that an audit compares."""

    num_samples: int = 10
    """Images of each model in the report's picture."""
    sampling_steps: int = 50
    """Of DDIM, for each image."""
    feature_network: str | None = None
    """TorchScript file, on every machine, of a network from (B, 3, H, W) images in [0, 1] to (B, D)
    features: FID and KID are measured by them; null: they are not."""
    feature_samples: int = 1000
    """Images drawn of each model, and at most as many real test images, for FID and KID."""

    def __post_init__(self) -> None:
        """Reject what draws nothing, or too little to measure."""
        for name, least in (("num_samples", 1), ("sampling_steps", 1), ("feature_samples", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}")


def open_features(config: DenoisingAudit, *, device: torch.device) -> nn.Module | None:
    """Load the feature network, if there is one.

    Raises:
        UsageError: the file is missing, or no TorchScript.
    """
    if (path := config.feature_network) is None:
        return None
    if not Path(path).is_file():
        raise UsageError(
            f"feature_network is {path}, which is no file; expected a TorchScript file"
        )
    try:
        with warnings.catch_warnings():
            # Torch would have us use torch.export, and what is published for FID is TorchScript.
            warnings.simplefilter("ignore", FutureWarning)
            network: nn.Module = torch.jit.load(path, map_location=device)  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise UsageError(
            f"feature_network is {path}, which torch.jit.load refuses ({str(error).strip()[:200]});"
            " expected a file that torch.jit.save wrote"
        ) from error
    return network


def measure_denoiser(
    model: Denoiser, test: ImageDataset, config: DenoisingAudit, *, seed: int
) -> Row:
    """Error by noise level, FID and KID if wanted, and some images, as JSON."""
    row: Row = {"error_by_timestep": error_by_timestep(model, test, num_bins=NUM_BINS)}
    features = open_features(config, device=model.device)
    num_images = config.num_samples if features is None else config.feature_samples
    drawn = sample(
        model,
        num_images=max(num_images, config.num_samples),
        num_steps=config.sampling_steps,
        seed=seed,
    )
    if features is not None:
        real = test.read(torch.arange(min(len(test), config.feature_samples)))
        if model.num_channels == 1:
            real = real.float().mean(dim=1, keepdim=True).round().byte()
        row |= distances(drawn, real, features=features)._asdict()
    return {**row, SAMPLES: _to_text(drawn[: config.num_samples])}


def picture_of(rows: Mapping[str, Row]) -> bytes:
    """PNG file of the images that ``rows`` hold, a line for each, under the names of the lines."""
    return picture_rows([(name, list(_from_text(row[SAMPLES]))) for name, row in rows.items()])


def without_samples(curve: Sequence[Row]) -> list[Row]:
    """``curve`` as a report keeps it."""
    return [{name: value for name, value in row.items() if name != SAMPLES} for row in curve]


def _to_text(images: Tensor) -> dict[str, Any]:
    pixels = base64.b64encode(images.contiguous().numpy().tobytes()).decode()
    return {"shape": list(images.shape), "pixels": pixels}


def _from_text(text: Mapping[str, Any]) -> Tensor:
    pixels = bytearray(base64.b64decode(text["pixels"]))
    return torch.frombuffer(pixels, dtype=torch.uint8).view(text["shape"])
