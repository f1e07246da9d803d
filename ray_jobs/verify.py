"""`ringfence verify`: what a protected dataset's manifest claims, proved from what is stored.

Every byte is checked against its digest, every image decoded and compared with its clean one: the
budget in whole 8-bit levels, each index there once, labels unchanged.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from protection.audit.imperceptibility import lowest_and_median, measure_changes
from ray_jobs.errors import JobError, UsageError
from ray_jobs.image_sets import ImageSetConfig, open_set
from ray_jobs.protected_datasets import find_protected, matching_order
from storage.datasets import ImageDataset

logger = logging.getLogger(__name__)

_CHUNK_SIZE = 1000


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Prove from the stored bytes that a protected dataset is within its budget of the clean."""

    protected: str
    """Location of the protected dataset, as `protect-data` printed it."""
    clean: ImageSetConfig | None = None
    """The images that were protected; null: those that the dataset's manifest names."""
    epsilon_levels: int | None = None
    """Budget to prove, in 8-bit levels; null: the one that the manifest claims."""


class _Claim(NamedTuple):
    """What is to be proved, with nothing left to look up."""

    protected: ImageDataset
    clean: ImageDataset
    epsilon_levels: int


def run(job: Verify) -> str:
    """Check everything and return what was found, as JSON.

    Raises:
        ValueError, StorageError: there is no such dataset, or a digest does not match.
        JobError: the dataset is not what it should be; the message names the first image.
    """
    claim = _open(job)
    protected, clean = claim.protected, claim.clean
    order = matching_order(protected, clean)
    if not torch.equal(protected.labels, clean.labels[order]):
        row = int(torch.nonzero(protected.labels != clean.labels[order])[0])
        raise JobError(
            f"index {int(protected.index[row])} has label {int(protected.labels[row])}, but its "
            f"clean image has {int(clean.labels[order][row])}; expected labels unchanged"
        )
    psnr: list[float] = []
    ssim: list[float] = []
    max_change_levels = num_changed = 0
    for rows in torch.split(torch.arange(len(protected)), _CHUNK_SIZE):
        changes = measure_changes(protected.originals(rows), clean.originals(order[rows]))
        worst = int(changes.max_levels.max())
        if worst > claim.epsilon_levels:
            row = int(rows[changes.max_levels.argmax()])
            raise JobError(
                f"index {int(protected.index[row])} is {worst} levels from its clean image; "
                f"expected at most {claim.epsilon_levels}"
            )
        is_changed = changes.max_levels > 0
        psnr += changes.psnr[is_changed].tolist()
        ssim += changes.ssim[is_changed].tolist()
        max_change_levels = max(max_change_levels, worst)
        num_changed += int(is_changed.sum())
        logger.info("verify %d/%d images", int(rows[-1]) + 1, len(protected))
    found: dict[str, Any] = {
        "num_images": len(protected),
        "num_changed": num_changed,
        "max_change_levels": max_change_levels,
        "epsilon_levels": claim.epsilon_levels,
        **lowest_and_median("psnr", psnr),
        **lowest_and_median("ssim", ssim),
    }
    return json.dumps(found, indent=2)


def _open(job: Verify) -> _Claim:
    found = find_protected(job.protected, clean=job.clean)
    epsilon_levels = job.epsilon_levels or found.epsilon_levels
    if epsilon_levels is None:
        raise UsageError(
            f"{found.protected.source} was not made by protect-data, so it claims no budget; "
            "expected epsilon_levels"
        )
    # Squares of 1 pixel, which nothing reads: only originals are compared.
    protected, clean = (open_set(images, image_size=1) for images in found[:2])
    if len(protected) != len(clean):
        raise JobError(
            f"{found.protected.source} has {len(protected)} images, but {found.clean.source} has "
            f"{len(clean)}; expected every image once"
        )
    return _Claim(protected, clean, epsilon_levels)
