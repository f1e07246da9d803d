"""Classifiers: a network, what it takes, and its head.

A `Classifier` keeps the network as its library built it, so that its weights load without
Ringfence, and adds what every job needs: pixel normalisation inside the model, its head, and its
penultimate features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

import torch
from torch import Tensor, nn

from protection.architectures import build_network, find_head, shrink_stem
from protection.batches import Batch
from protection.released import ReleasedModel
from protection.tasks import CLASSIFICATION, Examples

IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A network by name and the images it takes."""

    architecture: str
    """`timm/NAME`, `torchvision/NAME`, or `package.module:factory` called with `num_classes` and
    the options."""
    image_size: int
    """Height and width of the input, pixels; images of another size are resized and cropped."""
    options: dict[str, object] = field(default_factory=dict)
    """Further keyword arguments of the library's constructor, e.g. `drop_path_rate: 0.1`."""
    small_image_stem: bool = False
    """For images of CIFAR's size: the first, strided convolution becomes 3x3 with stride 1, the
    first max-pooling goes."""
    pretrained: bool = False
    """Start from the weights that the library downloads for this name."""
    pixel_mean: tuple[float, float, float] | None = None
    """Per-channel mean that the model subtracts; null: the pre-trained network's own, else
    ImageNet's."""
    pixel_std: tuple[float, float, float] | None = None
    """Per-channel standard deviation that the model divides by; null: as for `pixel_mean`."""

    def __post_init__(self) -> None:
        """Reject what no network can be built from."""
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; expected at least 1 pixel")
        if "num_classes" in self.options:
            raise ValueError(
                "options has num_classes, which comes from the dataset; expected other arguments"
            )
        if self.pretrained and self.small_image_stem:
            raise ValueError(
                "pretrained and small_image_stem are both true, but the stem is new and has no "
                "weights; expected one of them"
            )
        if self.pixel_std is not None and min(self.pixel_std) <= 0:
            raise ValueError(f"pixel_std is {self.pixel_std}; expected positive numbers")


class Classifier(ReleasedModel):
    """A network with pixel normalisation in front and a linear head that can be redrawn."""

    task = CLASSIFICATION
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        num_classes: int,
        pixel_mean: tuple[float, ...] = IMAGENET_MEAN,
        pixel_std: tuple[float, ...] = IMAGENET_STD,
    ) -> None:
        """Wrap ``network``, whose last linear layer with ``num_classes`` outputs is its head."""
        super().__init__()
        self.network = network
        self.head_name = find_head(network, num_classes=num_classes)
        # Not persistent: the weights keep the names and the number of tensors of the library's own
        # network.
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K)`` logits of ``images``, ``(B, C, H, W)`` in [0, 1]."""
        return cast(Tensor, self.network((images - self.pixel_mean) / self.pixel_std))

    def examples(self, batch: Batch, *key: int | str) -> Examples:
        """Return images and labels as they are; nothing is drawn."""
        del key
        # Convolutions are faster in this layout (benchmarks/image_layout.py), and pass it on.
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return Examples((images,), batch.labels)

    def features(self, images: Tensor) -> Tensor:
        """``(B, D)`` penultimate features: what the head receives."""
        caught: list[Tensor] = []
        hook = self.head.register_forward_pre_hook(lambda _, inputs: caught.append(inputs[0]))
        try:
            self(images)
        finally:
            hook.remove()
        return caught[-1].flatten(1)

    @property
    def head(self) -> nn.Linear:
        """The linear layer that turns features into logits."""
        return cast(nn.Linear, self.network.get_submodule(self.head_name))

    @property
    def num_classes(self) -> int:
        """Number of outputs."""
        return self.head.out_features


def replace_head(model: Classifier, head: nn.Linear) -> None:
    """Put ``head`` in the place of the model's own."""
    model.network.set_submodule(model.head_name, head)


def redrawn_head(model: Classifier, *, num_classes: int, rng: torch.Generator) -> nn.Linear:
    """A new head for ``num_classes`` classes, drawn as torch draws one, but from ``rng``."""
    old = model.head
    head = nn.Linear(old.in_features, num_classes, bias=old.bias is not None)
    # nn.Linear.reset_parameters in closed form: that one takes no generator.
    bound = old.in_features**-0.5
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.uniform_(-bound, bound, generator=rng)
    return head.to(old.weight)


def build_model(config: ModelConfig, *, num_classes: int) -> Classifier:
    """Classifier described by ``config``; its weights are drawn from torch's global generator.

    Raises:
        ValueError: the name, an option or the stem does not fit; the message says what would.
    """
    network = build_network(
        config.architecture,
        num_classes=num_classes,
        options=config.options,
        pretrained=config.pretrained,
    )
    if config.small_image_stem:
        shrink_stem(network, config.architecture)
    pretrained_cfg = getattr(network, "pretrained_cfg", None) if config.pretrained else None
    own = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else {}
    return Classifier(
        network,
        num_classes=num_classes,
        pixel_mean=config.pixel_mean or tuple(own.get("mean", IMAGENET_MEAN)),
        pixel_std=config.pixel_std or tuple(own.get("std", IMAGENET_STD)),
    )


def load_weights(
    model: ReleasedModel, weights: Mapping[str, Tensor], *, source: str, keeps_head: bool = False
) -> None:
    """Copy ``weights`` into the network; every tensor must be there, with its shape.

    Where the model ``keeps_head``, that of ``weights`` is left out, whatever it is.

    Raises:
        ValueError: ``weights`` are another architecture's or another class count's; ``source`` is
            named.
    """
    own = model.network.state_dict()
    head_key = f"{model.head_name}.weight" if isinstance(model, Classifier) else ""
    if keeps_head:
        assert isinstance(model, Classifier)  # other models are refused where heads are asked for
        head = {name: t for name, t in own.items() if name.startswith(f"{model.head_name}.")}
        weights = {**weights, **head}
    if head_key in weights and weights[head_key].shape != own[head_key].shape:
        raise ValueError(
            f"{source} has a head of shape {tuple(weights[head_key].shape)}, but the model's is "
            f"{tuple(own[head_key].shape)}; expected {own[head_key].shape[0]} classes "
            "(or pretrain with new_head: true)"
        )
    missing = sorted(own.keys() - weights.keys())
    unexpected = sorted(weights.keys() - own.keys())
    shapes = sorted(k for k in own.keys() & weights.keys() if own[k].shape != weights[k].shape)
    if missing or unexpected or shapes:
        raise ValueError(
            f"{source} does not fit {type(model.network).__name__}: missing {missing[:3]}, "
            f"unexpected {unexpected[:3]}, of other shape {shapes[:3]}; expected the weights of "
            "this architecture"
        )
    model.network.load_state_dict(dict(weights))
