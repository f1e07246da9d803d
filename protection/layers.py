"""The layers of a network, whatever library it comes from: stages, blocks, weight matrices."""

from collections.abc import Iterator
from typing import Final

from torch import nn

from protection.models import Classifier
from protection.released import ReleasedModel

# A container that holds nearly everything (`features`, `stages`, `blocks`) is no stage: it is
# opened until there are so many, which ResNets, transformers and plain stacks of layers all have.
_FEWEST_STAGES: Final = 4
_LISTS: Final = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def stages(model: Classifier) -> list[list[str]]:
    """Names of the network's tensors by stage, from the first stage to the last; without the head.

    A stage is a part of the network that holds a weight matrix: a ResNet's layer, a transformer's
    block, a convolution of a VGG. A norm belongs to the stage before it. So does what stands beside
    the head in a container of its own, such as the hidden layer of an MLP head, unless that is the
    bulk of the network. A tensor of no part (a class token) belongs to the first stage.
    """
    network, head = model.network, model.head_name
    parts = _children(network, "")
    while (opened := next((p for p in parts if head.startswith(f"{p}.")), None)) is not None:
        parts = _open(network, parts, opened)
    while len(found := _joined(network, head, parts)) < _FEWEST_STAGES:
        openable = [part for part in parts if part != head and _children(network, part)]
        if not openable:
            break
        parts = _open(network, parts, max(openable, key=lambda part: _size(network, part)))
    names = [name for name in network.state_dict() if not _is_in(name, [head])]
    by_stage = [[name for name in names if _is_in(name, stage)] for stage in found]
    homeless = [name for name in names if not any(name in stage for stage in by_stage)]
    if not by_stage:
        return [homeless] if homeless else []
    return [homeless + by_stage[0], *by_stage[1:]]


def blocks(model: ReleasedModel) -> list[nn.Module]:
    """What the network repeats: a transformer's blocks, a ResNet's, layers of a DenseNet.

    A block is an element of a list of modules that has two weight matrices or more, no block within
    it, and not the head. A network that is written out without lists, such as GoogLeNet, has none.
    """
    elements = [
        child
        for module in model.network.modules()
        if isinstance(module, _LISTS)
        for child in module.children()
        if not isinstance(child, _LISTS) and len(list(weight_matrices(child))) > 1
    ]
    others = {*elements, *([model.head] if isinstance(model, Classifier) else [])}
    return [one for one in elements if not (set(one.modules()) - {one}).intersection(others)]


def weight_matrices(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Every linear layer, convolution and attention projection, with its weight's name in it."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
            yield module, "weight"
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield module, "in_proj_weight"


def _children(network: nn.Module, part: str) -> list[str]:
    """Names of the modules in ``part`` that have parameters."""
    prefix = f"{part}." if part else ""
    return [
        prefix + name
        for name, child in network.get_submodule(part).named_children()
        if any(True for _ in child.parameters())
    ]


def _open(network: nn.Module, parts: list[str], part: str) -> list[str]:
    index = parts.index(part)
    return [*parts[:index], *_children(network, part), *parts[index + 1 :]]


def _joined(network: nn.Module, head: str, parts: list[str]) -> list[list[str]]:
    """``parts`` without the head, those that are no stage of their own joined to the one before."""
    container = head.rpartition(".")[0]
    beside = [part for part in parts if container and part.startswith(f"{container}.")]
    if 2 * sum(_size(network, part) for part in beside) > _size(network, ""):
        beside = []
    found: list[list[str]] = []
    for part in parts:
        if part == head:
            continue
        parameters = network.get_submodule(part).parameters()
        if found and (part in beside or all(p.ndim < 2 for p in parameters)):
            found[-1].append(part)
        else:
            found.append([part])
    return found


def _size(network: nn.Module, part: str) -> int:
    return sum(parameter.numel() for parameter in network.get_submodule(part).parameters())


def _is_in(name: str, parts: list[str]) -> bool:
    return any(name.startswith(f"{part}.") for part in parts)
