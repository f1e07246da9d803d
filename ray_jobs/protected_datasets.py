"""What a committed protected dataset says of itself: its clean images, and its budget."""

from typing import Any, NamedTuple

from ray_jobs.errors import UsageError
from ray_jobs.image_sets import ImageSetConfig, absolute_set
from storage.commit import read_manifest
from storage.dataset_writer import DATASET_KIND
from storage.location import parse_location


class ProtectedDataset(NamedTuple):
    """A protected dataset and its clean images, with nothing left to look up."""

    protected: ImageSetConfig
    clean: ImageSetConfig
    epsilon_levels: int | None
    """The budget it claims, in 8-bit levels; None where it was not made by protect-data."""


def find_protected(location: str, *, clean: ImageSetConfig | None) -> ProtectedDataset:
    """Read what the dataset at ``location`` is; ``clean`` overrides what its manifest names.

    Raises:
        StorageError: nothing is committed there.
        UsageError: what is there is no dataset, or does not name its clean images.
    """
    location = str(parse_location(location))
    manifest = read_manifest(location)
    if manifest.kind != DATASET_KIND:
        raise UsageError(
            f"{location} is a committed {manifest.kind}; expected the location of a dataset, as "
            "protect-data printed it"
        )
    recipe: Any = manifest.description.get("recipe", {})
    budget: Any = manifest.description.get("budget", {})
    if clean is None and recipe.get("command") != "protect-data":
        raise UsageError(
            f"{location} was not made by protect-data, so it does not name the images that were "
            "protected; expected clean in the recipe"
        )
    return ProtectedDataset(
        ImageSetConfig(source=location),
        absolute_set(clean or ImageSetConfig(**recipe["dataset"])),
        budget.get("epsilon_levels"),
    )
