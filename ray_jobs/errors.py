"""What a job says when it cannot go on."""


class JobError(Exception):
    """A job failed after it began; the message says why and what to do, the exit code is 1."""


class UsageError(ValueError):
    """What was asked for cannot be run; the message names value and fix, the exit code is 2."""


class HopelessError(Exception):
    """A worker failed at something that no restart would mend; the message says at what."""
