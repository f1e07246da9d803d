"""Networks by name, whatever library they come from: timm's, torchvision's or the user's own."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import timm
import torchvision
from torch import nn

from protection.names import imported, nearest

_Factory = Callable[..., nn.Module]


def build_network(
    architecture: str, *, num_classes: int, options: Mapping[str, object], pretrained: bool
) -> nn.Module:
    """Network ``architecture`` of `ModelConfig`, with its library's weights or with random ones.

    Args:
        architecture: `timm/NAME`, `torchvision/NAME` or `package.module:factory`.
        num_classes: outputs; the head of pre-trained weights of another number is a new one.
        options: further keyword arguments of the constructor.
        pretrained: download the library's weights, or take them from its cache on this machine.

    Raises:
        ValueError: the name or an option does not fit; the message says what would.
    """
    library, _, name = architecture.partition("/")
    if library == "timm":
        factory = _of_timm(name, pretrained=pretrained)
    elif library == "torchvision":
        factory = _of_torchvision(name, pretrained=pretrained)
    else:
        factory = _imported(architecture)
    try:
        network = factory(num_classes=num_classes, **options)
    except (TypeError, AssertionError) as error:  # both are how constructors refuse an argument
        raise ValueError(
            f"options is {dict(options)}, which {architecture} does not take ({error}); "
            "expected keyword arguments of its constructor"
        ) from error
    if not isinstance(network, nn.Module):
        raise ValueError(  # noqa: TRY004 - the caller's recipe is wrong, not a type in our code
            f"architecture is {architecture!r}, which returned {type(network).__name__}; "
            "expected a torch.nn.Module"
        )
    return network


def _of_timm(name: str, *, pretrained: bool) -> _Factory:
    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))
    return functools.partial(timm.create_model, name, pretrained=pretrained)


def _of_torchvision(name: str, *, pretrained: bool) -> _Factory:
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise ValueError(_unknown("torchvision", name, names))
    # Auxiliary heads (GoogLeNet, Inception) would make the output a tuple in train mode.
    extra = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}

    get_model = functools.partial(torchvision.models.get_model, name, **extra)
    if not pretrained:
        return get_model

    def factory(*, num_classes: int, **options: Any) -> nn.Module:
        network = cast(nn.Module, get_model(weights="DEFAULT", **options))
        # torchvision builds pre-trained networks with their own class count only.
        head_name = find_head(network, num_classes=None)
        old = cast(nn.Linear, network.get_submodule(head_name))
        network.set_submodule(head_name, nn.Linear(old.in_features, num_classes))
        return network

    return factory


def _imported(architecture: str) -> _Factory:
    if not architecture.partition(":")[2] or "/" in architecture:
        raise ValueError(
            f"architecture is {architecture!r}; expected timm/NAME, torchvision/NAME or "
            "package.module:factory"
        )
    return cast(_Factory, imported(architecture, field="architecture"))


def _unknown(library: str, name: str, names: list[str]) -> str:
    written, known = f"{library}/{name}", [f"{library}/{name}" for name in names]
    return (
        f"architecture is {written!r}, which names no {library} model; expected one of "
        f"{library}'s {len(names)} models{nearest(written, known, most=3)}"
    )


def find_head(network: nn.Module, *, num_classes: int | None) -> str:
    """Name of the last linear layer with ``num_classes`` outputs (any number where it is None).

    Raises:
        ValueError: there is none, or the network has a second head to be distilled into.
    """
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
    distilled = [name for name in heads if "head_dist" in name]
    if distilled:
        raise ValueError(
            f"{type(network).__name__} has a second head, {distilled[-1]}, whose scores it adds to "
            "the first one's; expected one head (a model of the same family that is not distilled)"
        )
    return heads[-1]


def shrink_stem(network: nn.Module, architecture: str) -> None:
    """Make the first, strided convolution 3x3 with stride 1, and take the first max-pooling out.

    Raises:
        ValueError: the network does not begin with these.
    """
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
