"""What is kept of each trial, and which trial is better.

A record is a file in the sweep's run, written by the trial when it begins and when it ends: a
sweep that was killed finds what its trials measured.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from storage.blobs import open_blobs
from storage.location import Location

RUNNING: Final = "running"
FINISHED: Final = "finished"
STOPPED: Final = "stopped"
FAILED: Final = "failed"

# Score, to the search, of a trial that was stopped or failed: worse than any that was measured.
UNMEASURED: Final = 2.0

_FOLDER: Final = "trials/"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the swept job."""

    trial_id: str
    state: str
    """running, finished, stopped (by the scheduler) or failed."""
    fields: Mapping[str, Any]
    """Recipe fields that it set, or that its line of trials began with."""
    began: float
    """Unix time."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """What was measured, on validation data."""
    score: float | None = None
    """What the search minimises; None where nothing was measured."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """In all, and of which: until the first round, rounds, the rest of the job, measuring."""
    rate_changes: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """What population-based training changed of them since, with the rounds."""
    location: str | None = None
    """What it made."""
    error: str | None = None
    """Why it failed."""


def write_trial(state: Location, trial: Trial) -> None:
    """Keep ``trial`` in the run of the sweep at ``state``, in place of what was kept of it."""
    record = json.dumps(dataclasses.asdict(trial)).encode()
    open_blobs(state).put(f"{_FOLDER}{trial.trial_id}.json", record)


def find_trial(state: Location, trial_id: str) -> Trial | None:
    """Return what is kept of one trial; None where it has not begun."""
    blobs, name = open_blobs(state), f"{_FOLDER}{trial_id}.json"
    return Trial(**json.loads(blobs.get(name))) if blobs.exists(name) else None


def read_trials(state: Location) -> list[Trial]:
    """Return all trials that began, in that order."""
    blobs = open_blobs(state)
    trials = [
        Trial(**json.loads(blobs.get(name)))
        for name in blobs.list(_FOLDER)
        if name.count("/") == 1 and name.endswith(".json")
    ]
    return sorted(trials, key=lambda trial: (trial.began, trial.trial_id))


def constrained(value: float, *, drop: float, limit: float) -> float:
    """Return ``value``, in [-1, 1], where ``drop`` is within ``limit``, else more than any value.

    What is outside ranks by how far: a search that minimises this finds its way back in.
    """
    return value if drop <= limit else 1 + drop


def ranked(trials: Iterable[Trial]) -> list[Trial]:
    """Return trials best first: by score, then the stopped, then the failed."""
    order = [FINISHED, STOPPED, RUNNING, FAILED]
    return sorted(
        trials,
        key=lambda t: (order.index(t.state), 0.0 if t.score is None else t.score, t.began),
    )


def pareto_set(trials: Iterable[Trial], names: Sequence[str]) -> list[Trial]:
    """Return the finished trials that no other beats, in order of the first of ``names``.

    One beats another that is at most equal in every metric of ``names``, where less is better, and
    better in one.
    """
    finished = [trial for trial in trials if trial.state == FINISHED]

    def values(trial: Trial) -> list[float]:
        return [trial.metrics[name] for name in names]

    def beats(a: Trial, b: Trial) -> bool:
        pairs = list(zip(values(a), values(b), strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    best = [t for t in finished if not any(beats(other, t) for other in finished)]
    return sorted(best, key=values)
