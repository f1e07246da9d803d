"""`ringfence verify`: whether what is committed is what it was, and a protected dataset as claimed.

The bytes of every part are checked against its digest; of a protected dataset, every image is
compared with its clean one.
"""

import json
import logging
from dataclasses import KW_ONLY, dataclass
from typing import Any

from ray_jobs.errors import JobError
from ray_jobs.image_sets import ImageSetConfig
from ray_jobs.tables import progress_text
from ray_jobs.terminal import PROGRESS
from storage.blobs import open_blobs
from storage.commit import read_manifest
from storage.errors import BlobMissingError, DigestMismatchError, StorageError
from storage.location import Location, parse_location
from storage.manifest import Manifest, Part
from storage.parallel_parts import Count, each_part, read_through

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verify:
    """Check that what is committed is what it was, and protected images within their budget."""

    location: str
    """Location of anything committed. Of a dataset that protect-data made, all images are compared
    with the clean ones."""
    _: KW_ONLY
    clean: ImageSetConfig | None = None
    """The images that were protected; null: those that the dataset's manifest names."""
    epsilon_levels: int | None = None
    """Budget to prove, in 8-bit levels; null: the one that the manifest claims."""
    digests_only: bool = False
    """Check the bytes alone, for example where the clean images are gone."""

    def __post_init__(self) -> None:
        """Reject what would be ignored."""
        if self.digests_only and (self.clean or self.epsilon_levels):
            raise ValueError(
                "digests_only is true, but clean or epsilon_levels is given, which only comparing "
                "images uses; expected the one or the other"
            )


def run(job: Verify) -> str:
    """Check everything and return what was found, as JSON.

    Raises:
        ValueError, StorageError: nothing is committed there, or clean images cannot be read.
        JobError: the commit is not what it was, or its images are not what they should be.
    """
    location = parse_location(job.location)
    manifest = read_manifest(location)
    _check_digests(location, manifest)
    found: dict[str, Any] = {
        "location": str(location),
        "kind": manifest.kind,
        "commit_id": manifest.commit_id,
        "num_parts": len(manifest.parts),
        "size_bytes": sum(part.size_bytes for part in manifest.parts.values()),
    }
    if _is_comparable(job, manifest):
        # Imported here: comparing takes torch, which takes seconds to load.
        from ray_jobs.budget_proof import prove_budget

        found |= prove_budget(str(location), clean=job.clean, epsilon_levels=job.epsilon_levels)
    return json.dumps(found, indent=2)


def _is_comparable(job: Verify, manifest: Manifest) -> bool:
    recipe = manifest.description.get("recipe")
    is_protected = isinstance(recipe, dict) and recipe.get("command") == "protect-data"
    asked = job.clean is not None or job.epsilon_levels is not None
    return not job.digests_only and (is_protected or asked)


def _check_digests(location: Location, manifest: Manifest) -> None:
    """Check all parts, and only then say which are damaged."""
    blobs = open_blobs(location)
    damage: dict[str, StorageError] = {}

    def check(name: str, part: Part, count: Count) -> None:
        try:
            read_through(part, location=location, blobs=blobs, count=count)
        except (BlobMissingError, DigestMismatchError) as error:
            damage[name] = error

    for progress in each_part(manifest.parts, check):
        logger.info("verify %s", progress_text(progress), extra=PROGRESS)
    if damage:
        raise JobError(
            f"{location} has {len(damage)} parts of {len(manifest.parts)} that are not what was "
            f"committed: {'; '.join(str(damage[name]) for name in sorted(damage))}"
        )
