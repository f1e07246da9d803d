"""Protected datasets as they are kept: what is committed for one, and what it says of itself."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protection.audit.imperceptibility import lowest_and_median
from ray_jobs.errors import JobError, UsageError
from ray_jobs.image_sets import ImageSetConfig, absolute_set
from ray_jobs.preview import PREVIEW_PART
from ray_jobs.protected_blocks import Note
from storage.commit import commit, read_manifest, read_part
from storage.dataset_writer import DATASET_KIND
from storage.datasets import ImageDataset
from storage.errors import AlreadyCommittedError
from storage.location import Location, parse_location
from storage.manifest import Manifest, Part


def commit_protected(
    output: Location,
    notes: Sequence[Note],
    *,
    preview: bytes,
    epsilon_levels: int,
    facts: Mapping[str, object],
) -> None:
    """Publish the staged blocks at ``output`` with their budget and how far images moved.

    Args:
        output: where the blocks are staged.
        notes: of all blocks, in order.
        preview: PNG file.
        epsilon_levels: the budget, in 8-bit levels.
        facts: of how the dataset was made.

    Raises:
        AlreadyCommittedError: something else is committed at ``output``.
    """
    blocks = {f"data-{number:05d}.parquet": note.part for number, note in enumerate(notes)}
    metrics = {
        "max_change_levels": max(note.max_change_levels for note in notes),
        **lowest_and_median("psnr", [v for note in notes for v in note.psnr if v is not None]),
        **lowest_and_median("ssim", [value for note in notes for value in note.ssim]),
    }
    description = {
        **facts,
        "budget": {"epsilon_levels": epsilon_levels},
        "num_images": sum(note.num_images for note in notes),
        "num_protected": sum(note.num_protected for note in notes),
        "metrics": metrics,
    }
    try:
        parts: dict[str, bytes | Part] = {**blocks, PREVIEW_PART: preview}
        commit(output, parts, kind=DATASET_KIND, description=description)
    except AlreadyCommittedError:
        # A worker that dies between its commit and the end of the run commits once more.
        committed = read_manifest(output).parts
        if any(committed.get(name) != part for name, part in blocks.items()):
            raise


class ProtectedDataset(NamedTuple):
    """A protected dataset and its clean images, with nothing left to look up."""

    protected: ImageSetConfig
    clean: ImageSetConfig
    epsilon_levels: int | None
    """The budget it claims, in 8-bit levels; None where it was not made by protect-data."""
    manifest: Manifest
    """Of the protected dataset."""

    def preview(self) -> bytes | None:
        """PNG file that shows what protection did; None where none was committed."""
        if PREVIEW_PART not in self.manifest.parts:
            return None
        return read_part(self.protected.source, PREVIEW_PART, manifest=self.manifest)


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
        manifest,
    )


def matching_order(protected: ImageDataset, clean: ImageDataset) -> Tensor:
    """``(N,)`` row of the clean image of each protected one, by their index.

    Raises:
        JobError: the two do not have the same indices, each once.
    """
    if torch.equal(protected.index, clean.index):
        return torch.arange(len(clean))
    sorted_protected, sorted_clean = protected.index.sort(), clean.index.sort()
    if not torch.equal(sorted_protected.values, sorted_clean.values):
        differs = torch.nonzero(sorted_protected.values != sorted_clean.values)[0]
        raise JobError(
            f"index {int(sorted_clean.values[differs])} is not there exactly once; expected the "
            "same indices as the clean images, each once"
        )
    order = torch.empty_like(sorted_clean.indices)
    order[sorted_protected.indices] = sorted_clean.indices
    return order
