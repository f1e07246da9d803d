"""`ringfence clean`: what runs left behind is listed and, if so asked, deleted."""

import logging
import time
from dataclasses import KW_ONLY, dataclass
from itertools import groupby

from ray_jobs.tables import age_text, columns, size_text
from storage.leftovers import Leftover, leftovers, remove

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clean:
    """Delete what is left over of old runs; without --yes, only list it."""

    location: str
    """A folder or an S3 prefix; what was left behind at any depth below it is found. That is: parts
    that no manifest names, the state of runs (their curves are kept), and writes and uploads that
    broke off."""
    _: KW_ONLY
    older_than: float = 24
    """Hours in which nothing may have been written to an output, or to its run's state, for
    anything of it to go. A run in progress writes at every checkpoint."""
    yes: bool = False
    """Delete what is listed. The state of an unfinished run is what it would go on from."""

    def __post_init__(self) -> None:
        """Reject an age that nothing can have."""
        if not self.older_than >= 0:
            raise ValueError(f"older_than is {self.older_than}; expected hours, 0 or more")


def run(job: Clean) -> str:
    """Return what is left over, a line for each output and kind of thing, or what was deleted.

    Raises:
        NotCommittedError: there is no file at all.
        StorageError: the location cannot be listed, or something cannot be deleted.
    """
    older_than_seconds = job.older_than * 3600
    found = leftovers(job.location, older_than_seconds=older_than_seconds)
    if not found:
        logger.info("nothing is left over that was idle for %g hours", job.older_than)
        return ""
    listed = "\n".join([*_lines(found), f"{_total(found)} in all"])
    if not job.yes:
        logger.info("nothing is deleted without --yes; it would delete:")
        return listed
    logger.info("deleting:\n%s", listed)
    gone = list(remove(found, older_than_seconds=older_than_seconds))
    if len(gone) < len(found):
        logger.info("%d of them are in use again, or gone already", len(found) - len(gone))
    return f"deleted {_total(gone)}"


def _lines(found: list[Leftover]) -> list[str]:
    def kind(piece: Leftover) -> tuple[str, str]:
        return piece.output, piece.what

    rows = []
    for (_, what), group in groupby(sorted(found, key=kind), key=kind):
        pieces = list(group)
        idle = age_text(time.time() - pieces[0].last_active)
        rows.append((what, _total(pieces), f"idle for {idle}", str(pieces[0].folder)))
    return columns(rows, right=1)


def _total(pieces: list[Leftover]) -> str:
    size = size_text(sum(piece.entry.size_bytes for piece in pieces))
    return f"{len(pieces)} {'file' if len(pieces) == 1 else 'files'}, {size}"
