"""Population-based training: a trial of a sweep that is behind goes on from one that is ahead.

Ray Tune decides it. Every so many rounds, a trial of the last quarter takes the place of one of
the first, with learning rates somewhat other than that one's. What comes of it is again a recipe:
the rates that a line of trials began with, and every change since, `sophon.rate_changes`. So a
trial is the run of a recipe, as any other; its first rounds were made by another run, whose
checkpoint is copied.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from ray import tune

from ray_jobs.run_checkpoints import copy_checkpoint
from ray_jobs.sweep_records import Trial
from storage.location import Location, parse_location

# What may change between two rounds, by the paths that spaces have.
RATES: Final = ("sophon.suppression_lr", "sophon.reinforcement_lr")
_FILE: Final = "standing.json"


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a trial was when Tune looked: what another can go on from."""

    state: str
    """Location of the run's state."""
    num_done: int
    """Rounds behind it."""
    fields: Mapping[str, Any]
    """That its line began with."""
    rate_changes: Sequence[Mapping[str, Any]]
    """Of its line until then."""


def report_standing(metrics: dict[str, Any], standing: Standing) -> None:
    """Report to Tune, from a trial, and where the trial is."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _FILE).write_text(json.dumps(asdict(standing)))
        tune.report(metrics, checkpoint=tune.Checkpoint.from_directory(folder))


def given_standing() -> Standing | None:
    """Where this trial is to go on from, its own or another's; None at its beginning."""
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return Standing(**json.loads((Path(folder) / _FILE).read_text()))


def continued(trial: Trial, standing: Standing, rates: Mapping[str, Any]) -> Trial:
    """``trial`` as it goes on from ``standing`` with ``rates``, by path."""
    now = dict(standing.fields)
    for change in standing.rate_changes:
        now |= {path: change[_name(path)] for path in now}
    changes = list(standing.rate_changes)
    if dict(rates) != now:
        own = {_name(path): value for path, value in rates.items()}
        changes.append({"from_round": standing.num_done, **own})
    return replace(trial, fields=standing.fields, rate_changes=changes)


def take_over(standing: Standing, state: Location) -> None:
    """Give the run at ``state`` the checkpoint of ``standing``, if it is not its own or there.

    Raises:
        JobError: there is none.
    """
    if str(state) != standing.state:
        copy_checkpoint(parse_location(standing.state), state, num_done=standing.num_done)


def _name(path: str) -> str:
    return path.rsplit(".", 1)[-1]
