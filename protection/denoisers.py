"""Diffusion models of images: diffusers' own networks and noise schedules, to train and protect.

A `Denoiser` keeps diffusers' `UNet2DModel` as it is, so that its weights load without Ringfence.
diffusers is imported where it is used: it takes seconds that commands on classifiers need not wait.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from torch import Tensor, nn

from protection.batches import Batch
from protection.denoising import DENOISING, noised
from protection.released import ReleasedModel
from protection.tasks import Examples

BETA_SCHEDULES: Final = ("linear", "scaled_linear", "squaredcos_cap_v2")


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """A U-Net of diffusers and its noise schedule, described here or taken from a pipeline."""

    image_size: int
    """Height and width of images, pixels; others are resized and cropped."""
    channels: int = 3
    """Of the images: 3, or 1 for grey."""
    block_out_channels: list[int] = field(default_factory=lambda: [128, 256, 256, 256])
    """Width of each level; each level after the first has half the height (DDPM's, for 32
    pixels)."""
    layers_per_block: int = 2
    """Residual blocks a level."""
    attention_sizes: list[int] = field(default_factory=list)
    """Heights in pixels of the levels that have self-attention (DDPM: 16); what joins the way down
    and the way up always has."""
    dropout: float = 0.0
    """Of the residual blocks."""
    num_train_timesteps: int = 1000
    """Noise levels, T."""
    beta_schedule: str = "linear"
    """linear (DDPM), scaled_linear, or squaredcos_cap_v2 (cosine)."""
    source: str | None = None
    """Start from a pipeline of diffusers instead, weights included: a folder or a name on the
    hub, e.g. google/ddpm-cifar10-32. Says all but the image size itself."""

    def __post_init__(self) -> None:
        """Reject what no U-Net can be built from, and what would be ignored."""
        if self.source is not None:
            self._require_defaults()
            return
        levels = len(self.block_out_channels)
        if not levels or min(self.block_out_channels) < 1:
            raise ValueError(
                f"block_out_channels is {self.block_out_channels}; expected a positive number for "
                "each level"
            )
        if self.image_size < 1 or self.image_size % 2 ** (levels - 1):
            raise ValueError(
                f"image_size is {self.image_size}, but the {levels} levels of block_out_channels "
                f"halve it {levels - 1} times; expected a multiple of {2 ** (levels - 1)}"
            )
        sizes = [self.image_size // 2**level for level in range(levels)]
        for size in self.attention_sizes:
            if size not in sizes:
                raise ValueError(
                    f"attention_sizes has {size}, but the levels have "
                    f"{', '.join(map(str, sizes))} pixels; expected some of these"
                )
        if self.channels not in (1, 3):
            raise ValueError(f"channels is {self.channels}; expected 3, or 1 for grey")
        for name in ("layers_per_block", "num_train_timesteps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; expected at least 0, below 1")
        if self.beta_schedule not in BETA_SCHEDULES:
            raise ValueError(
                f"beta_schedule is {self.beta_schedule!r}, which names none; expected "
                f"{', '.join(BETA_SCHEDULES)}"
            )

    def _require_defaults(self) -> None:
        plain = DenoiserConfig(image_size=2**10)
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            if each.name not in ("image_size", "source") and value != getattr(plain, each.name):
                raise ValueError(
                    f"{each.name} is {value}, but source is {self.source}, which says it itself; "
                    "expected image_size alone beside it"
                )


@dataclass(frozen=True)
class Blueprint:
    """A denoiser without its weights: what diffusers writes into its two configuration files."""

    unet: dict[str, Any]
    """Of `UNet2DModel`."""
    scheduler: dict[str, Any]
    """Of `DDPMScheduler`."""

    @property
    def image_size(self) -> int:
        """Height and width of the images, pixels."""
        return int(self.unet["sample_size"])


class Denoiser(ReleasedModel):
    """A U-Net that predicts the noise in images whose pixels are scaled to [-1, 1]."""

    task = DENOISING
    alphas_cumprod: Tensor

    def __init__(self, network: nn.Module, scheduler: Any) -> None:
        """Wrap ``network``, a `UNet2DModel`, with the schedule of ``scheduler``, a `DDPMScheduler`.

        Raises:
            ValueError: it is trained to predict something else than the noise.
        """
        super().__init__()
        kind = scheduler.config.prediction_type
        if kind != "epsilon":
            raise ValueError(
                f"prediction_type is {kind!r}, but a denoiser here predicts noise; expected "
                "'epsilon'"
            )
        self.network, self.scheduler = network, scheduler
        # Not persistent: the weights keep the names and the number of tensors of the library's own
        # network.
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.clone(), persistent=False)

    def forward(self, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """``(B, C, H, W)`` predicted noise in ``noisy`` images at ``(B,)`` timesteps."""
        predicted = cast(Tensor, self.network(noisy, timesteps, return_dict=False)[0])
        return predicted.to(noisy.dtype)  # of half the width where it was computed in that

    def examples(self, batch: Batch, *key: int | str) -> Examples:
        """Return ``batch`` with noise drawn by ``key``, and that noise; labels do not matter."""
        return noised(self.scaled(batch.images), self.alphas_cumprod, *key)

    def scaled(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in [-1, 1] of ``(B, 3, H, W)`` in [0, 1]; grey where C is 1."""
        if self.num_channels == 1:
            images = images.mean(dim=1, keepdim=True)
        return 2 * images - 1

    @property
    def num_channels(self) -> int:
        """Of the images: 3, or 1 for grey."""
        return int(self.blueprint.unet["in_channels"])

    @property
    def blueprint(self) -> Blueprint:
        """What it was built from."""
        unet, scheduler = cast(Any, self.network), self.scheduler
        return Blueprint(json.loads(unet.to_json_string()), json.loads(scheduler.to_json_string()))


def build_denoiser(config: DenoiserConfig) -> Denoiser:
    """Denoiser described by ``config``; new weights are drawn from torch's global generator.

    Raises:
        ValueError: the pipeline that ``config`` names cannot be loaded, or is of another kind.
    """
    if config.source is not None:
        return _from_pipeline(config.source, image_size=config.image_size)
    return from_blueprint(_blueprint(config))


def from_blueprint(blueprint: Blueprint) -> Denoiser:
    """New denoiser by its blueprint; its weights are drawn from torch's global generator."""
    from diffusers import DDPMScheduler, UNet2DModel

    network = UNet2DModel.from_config(_arguments(blueprint.unet))
    return Denoiser(network, DDPMScheduler.from_config(_arguments(blueprint.scheduler)))


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` without diffusers' own notes, of which it would warn."""
    return {name: value for name, value in config.items() if not name.startswith("_")}


def _blueprint(config: DenoiserConfig) -> Blueprint:
    levels = range(len(config.block_out_channels))
    has_attention = [config.image_size // 2**n in config.attention_sizes for n in levels]
    unet = {
        "sample_size": config.image_size,
        "in_channels": config.channels,
        "out_channels": config.channels,
        "layers_per_block": config.layers_per_block,
        "block_out_channels": config.block_out_channels,
        "down_block_types": ["AttnDownBlock2D" if a else "DownBlock2D" for a in has_attention],
        "up_block_types": ["AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(has_attention)],
        "dropout": config.dropout,
        # 32, as usual, or fewer where a level's width is no multiple of it.
        "norm_num_groups": math.gcd(32, *config.block_out_channels),
    }
    scheduler = {
        "num_train_timesteps": config.num_train_timesteps,
        "beta_schedule": config.beta_schedule,
    }
    return Blueprint(unet, scheduler)


def _from_pipeline(source: str, *, image_size: int) -> Denoiser:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    try:
        # A pickle from the hub can run any code in whoever loads it.
        pipeline = DDPMPipeline.from_pretrained(source, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"source is {source}, which diffusers cannot load as a DDPMPipeline ({error}); "
            "expected a folder that it wrote, or a name on the hub, with weights in safetensors"
        ) from error
    network = pipeline.unet
    if not isinstance(network, UNet2DModel) or network.config.sample_size != image_size:
        raise ValueError(
            f"source is {source}, a {type(network).__name__} of "
            f"{network.config.sample_size} pixels, and image_size is {image_size}; expected a "
            "UNet2DModel of that size"
        )
    return Denoiser(network, DDPMScheduler.from_config(pipeline.scheduler.config))
