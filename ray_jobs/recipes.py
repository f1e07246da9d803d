"""Recipes from files and from plain values, checked as the command line checks them."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentParser

from ray_jobs.errors import UsageError

Recipe = TypeVar("Recipe")


def read_recipe(path: Path, recipe_type: type[Recipe]) -> Recipe:
    """Return the recipe in the YAML file at ``path``.

    Raises:
        UsageError: there is no such file.
        ArgumentError, ValueError: a field is unknown, missing, of another type, or refused.
    """
    if not path.is_file():
        raise UsageError(f"{path} is no file; expected a recipe, e.g. one of the recipes folder")
    parser = _parser(recipe_type)
    return recipe_type(**vars(parser.instantiate(parser.parse_path(path))))


def recipe_from(values: Mapping[str, Any], recipe_type: type[Recipe]) -> Recipe:
    """Return the recipe that ``values`` are the fields of, nested as in a file.

    Raises:
        ArgumentError, ValueError: a field is unknown, missing, of another type, or refused.
    """
    parser = _parser(recipe_type)
    return recipe_type(**vars(parser.instantiate(parser.parse_object(dict(values)))))


def to_plain(recipe: Any) -> dict[str, Any]:
    """Fields of ``recipe`` as JSON and YAML hold them: `recipe_from` makes it again."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return plain


def _parser(recipe_type: type[Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(recipe_type)
    return parser
