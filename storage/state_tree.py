"""Nested training state as JSON beside a table of tensors, and back.

Guarantee: every value comes back equal and of its own type (tuples as lists), which plain JSON
does not give: it turns the integer keys of an optimizer's state into strings and has no infinity.
"""

import math
from collections.abc import Mapping
from typing import Final

from torch import Tensor

# One-key mappings that stand for what JSON lacks. A real mapping with such a key is written as
# items, so no state can be mistaken for a mark.
_TENSOR: Final = "__tensor__"
_ITEMS: Final = "__items__"
_FLOAT: Final = "__float__"
_MARKS: Final = frozenset({_TENSOR, _ITEMS, _FLOAT})
# Training state nests about five deep; only a cycle gets here, well before Python's own limit.
_MAX_DEPTH: Final = 100


def encode(value: object, *, name: str) -> tuple[object, dict[str, Tensor]]:
    """Return ``value`` as JSON, and the tensors in it under the names the JSON uses.

    Args:
        value: mappings, lists, tuples, tensors, numbers, strings, booleans and None, nested.
        name: what errors call ``value``.

    Raises:
        ValueError: something inside is of another type; the message says where.
    """
    tensors: dict[str, Tensor] = {}
    return _encode(value, name, tensors, 0), tensors


def decode(tree: object, tensors: Mapping[str, Tensor]) -> object:
    """Return what :func:`encode` was given.

    Raises:
        KeyError: ``tree`` names a tensor that is not in ``tensors``.
    """
    if isinstance(tree, list):
        return [decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    mark = next(iter(tree)) if len(tree) == 1 else None
    if mark == _TENSOR:
        return tensors[tree[_TENSOR]]
    if mark == _FLOAT:
        return float(tree[_FLOAT])
    if mark == _ITEMS:
        return {key: decode(item, tensors) for key, item in tree[_ITEMS]}
    return {key: decode(item, tensors) for key, item in tree.items()}


def _encode(value: object, where: str, tensors: dict[str, Tensor], depth: int) -> object:
    if depth > _MAX_DEPTH:
        raise ValueError(
            f"{where[:80]}... is nested more than {_MAX_DEPTH} deep; expected no cycles"
        )
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        items = {
            _require_key(key, where): _encode(item, f"{where}[{key!r}]", tensors, depth + 1)
            for key, item in value.items()
        }
        is_plain = all(isinstance(key, str) for key in items) and not _MARKS & items.keys()
        return items if is_plain else {_ITEMS: [list(item) for item in items.items()]}
    if isinstance(value, list | tuple):
        return [_encode(v, f"{where}[{i}]", tensors, depth + 1) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(
        f"{where} is a {type(value).__name__}, which cannot be stored without pickle; expected a"
        " tensor, number, string, boolean, None, mapping, list or tuple"
    )


def _require_key(key: object, where: str) -> str | int:
    if isinstance(key, str | int):
        return key
    raise ValueError(
        f"{where} has the key {key!r}, a {type(key).__name__}; expected a string or an integer"
    )
