"""Whether protected images are within their budget, proved from what is stored.

Every image is decoded and compared with its clean one: the budget in whole 8-bit levels, each index
there once, labels unchanged.
"""

import logging
from typing import Any, NamedTuple

import torch

from protection.audit.imperceptibility import lowest_and_median, measure_changes
from ray_jobs.errors import JobError, UsageError
from ray_jobs.image_sets import ImageSetConfig, open_set
from ray_jobs.protected_datasets import find_protected, matching_order
from ray_jobs.terminal import PROGRESS
from storage.datasets import ImageDataset
from storage.errors import StorageError

logger = logging.getLogger(__name__)

_CHUNK_SIZE = 1000


class _Claim(NamedTuple):
    """What is to be proved, with nothing left to look up."""

    protected: ImageDataset
    clean: ImageDataset
    epsilon_levels: int


def prove_budget(
    location: str, *, clean: ImageSetConfig | None, epsilon_levels: int | None
) -> dict[str, Any]:
    """Compare the protected dataset at ``location`` with its clean images; return what was found.

    Args:
        location: of the protected dataset.
        clean: the images that were protected; None: those that its manifest names.
        epsilon_levels: the budget to prove, in 8-bit levels; None: the one that it claims.

    Raises:
        ValueError, StorageError: one of the two cannot be read, or is no dataset.
        JobError: the dataset is not what it should be; the message names the first image.
    """
    return _prove(_open(location, clean=clean, epsilon_levels=epsilon_levels))


def _prove(claim: _Claim) -> dict[str, Any]:
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
        logger.info("verify %d/%d images", int(rows[-1]) + 1, len(protected), extra=PROGRESS)
    return {
        "num_images": len(protected),
        "num_changed": num_changed,
        "max_change_levels": max_change_levels,
        "epsilon_levels": claim.epsilon_levels,
        **lowest_and_median("psnr", psnr),
        **lowest_and_median("ssim", ssim),
    }


def _open(location: str, *, clean: ImageSetConfig | None, epsilon_levels: int | None) -> _Claim:
    found = find_protected(location, clean=clean)
    epsilon_levels = epsilon_levels or found.epsilon_levels
    if epsilon_levels is None:
        raise UsageError(
            f"{found.protected.source} was not made by protect-data, so it claims no budget; "
            "expected epsilon_levels"
        )
    # Squares of 1 pixel, which nothing reads: only originals are compared.
    protected = open_set(found.protected, image_size=1)
    try:
        originals = open_set(found.clean, image_size=1)
    except StorageError as error:
        raise UsageError(
            f"{error} (clean names the images that were protected; where they are gone, "
            "--digests_only still checks what is stored)"
        ) from error
    if len(protected) != len(originals):
        raise JobError(
            f"{found.protected.source} has {len(protected)} images, but {found.clean.source} has "
            f"{len(originals)}; expected every image once"
        )
    return _Claim(protected, originals, epsilon_levels)
