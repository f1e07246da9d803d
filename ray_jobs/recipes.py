"""Recipes from files and from plain values, checked as the command line checks them."""

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser

from ray_jobs.errors import UsageError

Recipe = TypeVar("Recipe")


def read_recipe(path: Path, recipe_type: type[Recipe]) -> Recipe:
    """Return the recipe in the YAML file at ``path``.

    Raises:
        UsageError: there is no such file, or a field is unknown, missing or of another type.
        ValueError: the recipe refuses a value.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; expected a recipe, e.g. one of the recipes folder")
    parser = _parser(recipe_type)
    try:
        return recipe_type(**vars(parser.instantiate(parser.parse_path(path))))
    except ArgumentError as error:
        raise UsageError(
            f"{path} is no recipe of {recipe_type.__name__}: {plain(error)}"
        ) from error


def recipe_from(values: Mapping[str, Any], recipe_type: type[Recipe]) -> Recipe:
    """Return the recipe that ``values`` are the fields of, nested as in a file.

    Raises:
        UsageError: a field is unknown, missing or of another type.
        ValueError: the recipe refuses a value.
    """
    parser = _parser(recipe_type)
    own = copy.deepcopy(dict(values))  # the parser changes what is nested in it
    try:
        return recipe_type(**vars(parser.instantiate(parser.parse_object(own))))
    except ArgumentError as error:
        raise UsageError(plain(error)) from error


def to_plain(recipe: Any) -> dict[str, Any]:
    """Fields of ``recipe`` as JSON and YAML hold them: `recipe_from` makes it again."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def plain(error: Exception) -> str:
    """Return the message of ``error`` on one line."""
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _parser(recipe_type: type[Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(recipe_type)
    return parser
