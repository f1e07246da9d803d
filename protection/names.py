"""Names that somebody wrote: what they lead to, and what to say where that is nothing."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


def nearest(word: object, known: Iterable[object], *, most: int = 1) -> str:
    """Return a hint at what of ``known`` the ``word`` is probably meant to be; empty if nothing is.

    Args:
        word: as it was written; its case is of no account.
        known: what there is.
        most: suggestions to make.
    """
    by_lower = {str(name).lower(): str(name) for name in known}
    near = difflib.get_close_matches(str(word).lower(), list(by_lower), n=most)
    return f" (did you mean {' or '.join(by_lower[name] for name in near)}?)" if near else ""


def imported(
    name: str, *, field: str, expected: str = "a module on PYTHONPATH and a function in it"
) -> Any:
    """What ``name``, ``package.module:attribute``, is.

    Args:
        name: as it was written in ``field`` of a recipe.
        field: named where there is no such thing.
        expected: what ``name`` should have been, as the error says it.

    Raises:
        ValueError: the module cannot be imported, or has no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{field} is {name!r}, which cannot be imported ({error}); expected {expected}"
        ) from error
