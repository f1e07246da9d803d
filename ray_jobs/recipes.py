"""Recipe files read from Python, as the command line reads them."""

from pathlib import Path
from typing import TypeVar

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
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(recipe_type)
    return recipe_type(**vars(parser.instantiate(parser.parse_path(path))))
