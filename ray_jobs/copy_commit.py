"""`ringfence copy`: the same commit somewhere else."""

import logging
from dataclasses import dataclass

from ray_jobs.errors import JobError
from ray_jobs.pipeline_files import write_pipeline
from ray_jobs.tables import progress_text
from ray_jobs.terminal import PROGRESS
from storage.copying import copy_commit, is_copied
from storage.errors import BlobMissingError, DigestMismatchError
from storage.location import parse_location

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Copy:
    """Copy what is committed at a location to another."""

    source: str
    """Location to copy, a local folder or an S3 prefix."""
    destination: str
    """Location of the copy, likewise; nothing else may be committed there."""


def run(job: Copy) -> str:
    """Copy, checking every part, and return the location of the copy.

    Raises:
        NotCommittedError: nothing is committed at the source.
        AlreadyCommittedError: something else is committed at the destination.
        StorageError: one of them cannot be reached.
        JobError: a part at the source is missing, or not what was committed.
    """
    source, destination = parse_location(job.source), parse_location(job.destination)
    if is_copied(source, destination):
        logger.info("%s is there already, whole: the same commit", destination)
        return str(destination)
    try:
        for progress in copy_commit(source, destination):
            logger.info("copy %s", progress_text(progress), extra=PROGRESS)
    except (BlobMissingError, DigestMismatchError) as error:
        raise JobError(f"{source} is damaged, so it is not copied: {error}") from error
    write_pipeline(destination)
    return str(destination)
