"""Classifiers by name, whatever library they come from.

A `Classifier` keeps the network as its library built it, so that its weights load without
Ringfence, and adds what every job needs: pixel normalisation inside the model, its head, and its
penultimate features.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

import timm
import torch
import torchvision
from torch import Tensor, nn

from protection.names import imported, nearest

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


class Classifier(nn.Module):
    """A network with pixel normalisation in front and a linear head that can be redrawn."""

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
        self.head_name = _find_head(network, num_classes=num_classes)
        # Not persistent: the weights keep the names and the number of tensors of the library's own
        # network.
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K)`` logits of ``images``, ``(B, C, H, W)`` in [0, 1]."""
        return cast(Tensor, self.network((images - self.pixel_mean) / self.pixel_std))

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

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device


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
    library, _, name = config.architecture.partition("/")
    if library == "timm":
        network = _build_timm(config, name, num_classes=num_classes)
    elif library == "torchvision":
        network = _build_torchvision(config, name, num_classes=num_classes)
    else:
        factory = _import_factory(config.architecture)
        network = _call(config, factory, num_classes=num_classes)
    if config.small_image_stem:
        _shrink_stem(network, config.architecture)
    pretrained_cfg = getattr(network, "pretrained_cfg", None) if config.pretrained else None
    own = pretrained_cfg if isinstance(pretrained_cfg, Mapping) else {}
    return Classifier(
        network,
        num_classes=num_classes,
        pixel_mean=config.pixel_mean or tuple(own.get("mean", IMAGENET_MEAN)),
        pixel_std=config.pixel_std or tuple(own.get("std", IMAGENET_STD)),
    )


def _build_timm(config: ModelConfig, name: str, *, num_classes: int) -> nn.Module:
    if not timm.is_model(name):
        raise ValueError(_unknown(config.architecture, "timm", timm.list_models()))

    def factory(**options: Any) -> nn.Module:
        return timm.create_model(name, pretrained=config.pretrained, **options)

    return _call(config, factory, num_classes=num_classes)


def _build_torchvision(config: ModelConfig, name: str, *, num_classes: int) -> nn.Module:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(_unknown(config.architecture, "torchvision", names))
    # Auxiliary heads (GoogLeNet, Inception) would make the output a tuple in train mode.
    extra = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}

    def factory(*, num_classes: int, **options: Any) -> nn.Module:
        if not config.pretrained:
            return cast(
                nn.Module,
                torchvision.models.get_model(name, num_classes=num_classes, **extra, **options),
            )
        network = cast(
            nn.Module, torchvision.models.get_model(name, weights="DEFAULT", **extra, **options)
        )
        # torchvision builds pre-trained networks with their own class count only.
        head_name = _find_head(network, num_classes=None)
        old = cast(nn.Linear, network.get_submodule(head_name))
        network.set_submodule(head_name, nn.Linear(old.in_features, num_classes))
        return network

    return _call(config, factory, num_classes=num_classes)


def _call(config: ModelConfig, factory: Callable[..., nn.Module], *, num_classes: int) -> nn.Module:
    try:
        network = factory(num_classes=num_classes, **config.options)
    except (TypeError, AssertionError) as error:  # both are how constructors refuse an argument
        raise ValueError(
            f"options is {config.options}, which {config.architecture} does not take ({error}); "
            "expected keyword arguments of its constructor"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(  # noqa: TRY004 - the caller's recipe is wrong, not a type in our code
            f"architecture is {config.architecture!r}, which returned {type(network).__name__}; "
            "expected a torch.nn.Module"
        )
    return network


def _import_factory(architecture: str) -> Callable[..., nn.Module]:
    if not architecture.partition(":")[2] or "/" in architecture:
        raise ValueError(
            f"architecture is {architecture!r}; expected timm/NAME, torchvision/NAME or "
            "package.module:factory"
        )
    return cast(Callable[..., nn.Module], imported(architecture, field="architecture"))


def _unknown(architecture: str, library: str, names: list[str]) -> str:
    known = [f"{library}/{name}" for name in names]
    return (
        f"architecture is {architecture!r}, which names no {library} model; expected one of "
        f"{library}'s {len(names)} models{nearest(architecture, known, most=3)}"
    )


def _find_head(network: nn.Module, *, num_classes: int | None) -> str:
    """Name of the last linear layer with ``num_classes`` outputs (any number where it is None)."""
    linear = {name: m for name, m in network.named_modules() if isinstance(m, nn.Linear)}
    heads: list[str] = [
        n for n, m in linear.items() if num_classes is None or m.out_features == num_classes
    ]
    if not heads:
        raise ValueError(
            f"{type(network).__name__} has no linear layer with {num_classes} outputs (its linear "
            f"layers end in {sorted({m.out_features for m in linear.values()})}); expected one as "
            "its head"
        )
    return heads[-1]


def _shrink_stem(network: nn.Module, architecture: str) -> None:
    convolutions = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    poolings = [n for n, m in network.named_modules() if isinstance(m, nn.MaxPool2d)]
    if not convolutions or convolutions[0][1].stride == (1, 1) or not poolings:
        raise ValueError(
            f"small_image_stem is true, but {architecture} does not begin with a strided "
            "convolution and a max-pooling; expected false (or a ResNet, DenseNet or GoogLeNet)"
        )
    name, old = convolutions[0]
    new = nn.Conv2d(
        old.in_channels, old.out_channels, 3, stride=1, padding=1, bias=old.bias is not None
    )
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, new)
    network.set_submodule(poolings[0], nn.Identity())


def load_weights(model: Classifier, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Copy ``weights`` into the network; every tensor must be there, with its shape.

    Raises:
        ValueError: ``weights`` are another architecture's or another class count's; ``source`` is
            named.
    """
    own = model.network.state_dict()
    head_key = f"{model.head_name}.weight"
    if head_key in weights and weights[head_key].shape != own[head_key].shape:
        raise ValueError(
            f"{source} has a head of shape {tuple(weights[head_key].shape)}, but the model's is "
            f"{tuple(own[head_key].shape)}; expected {own[head_key].shape[0]} classes"
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
