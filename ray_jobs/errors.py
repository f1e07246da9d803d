"""What a job says when it cannot go on."""

import errno
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class JobError(Exception):
    """A job failed after it began; the message says why and what to do, the exit code is 1."""


class UsageError(ValueError):
    """What was asked for cannot be run; the message names value and fix, the exit code is 2."""


class HopelessError(Exception):
    """A worker failed at something that no restart would mend; the message says at what."""


def full_disk(error: BaseException) -> str | None:
    """Return what to say of ``error`` if it is that a disk is full."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return None
    return f"the disk of {error.filename or 'a machine'} is full; expected free space on it"
