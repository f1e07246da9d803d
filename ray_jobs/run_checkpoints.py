"""Checkpoints of a run's training state: commits, of which the newest whole one is resumed.

Ray Train registers them, keeps the last few and deletes the others. What is in them goes through
`storage/`: a checkpoint is whole or not there, every byte is checked when it is read, and one that
was damaged is passed over for the one before it.
"""

import contextlib
import math
import re
import tempfile
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple, Protocol

import ray.train
import torch

from protection.workers import Workers
from ray_jobs.cluster import RUN_NAME, SCORE
from ray_jobs.errors import JobError
from ray_jobs.reporting import NOTICE, ROWS, Row
from ray_jobs.runs import Run
from storage.blobs import open_blobs
from storage.copying import copy_commit
from storage.errors import AlreadyCommittedError
from storage.location import Location
from storage.manifest import MANIFEST_NAME
from storage.training_state import DAMAGED, commit_training_state, read_training_state

_STATE: Final = "state"
_REPORTS: Final = "reports"
_COMMITTED: Final = re.compile(rf"round-(\d+)-try-(\d+)/{re.escape(MANIFEST_NAME)}")


class Resumable(Protocol):
    """The state of an algorithm between rounds."""

    def state_dict(self) -> dict[str, object]:
        """Tensors and numbers, nested."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        ...


class Place(NamedTuple):
    """Of a checkpoint among those of its run."""

    num_done: int
    """Rounds that it has behind it."""
    attempt: int
    """From 1. A run that passed over a damaged checkpoint comes by its round once more, and Ray
    deletes both if they have one name."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"round-{self.num_done:06d}-try-{self.attempt}"


class Report(NamedTuple):
    """What rank 0 reports at once."""

    num_done: int
    """Rounds that are done by then."""
    rows: list[Row]


class Resumed(NamedTuple):
    """Where a run goes on."""

    attempt: int
    rows: list[Row]
    """To report before the first round's: notices of each checkpoint that was damaged, and what
    came with the loaded one, where a crash kept that from being reported."""


FROM_THE_START: Final = Resumed(attempt=1, rows=[])


def report_checkpoint(
    reports: list[Report], state: dict[str, object], place: Place, this_run: Run
) -> None:
    """Report the last of ``reports`` to Ray Train with a checkpoint of ``state``.

    The others are those before it, at least the two that a crash can keep from the controller: the
    one that it has of some workers only, and the one that waits for it.

    Raises:
        ValueError: the recipe's cluster.keep_best_by names no number of the last row.
    """
    best_by = this_run.recipe["cluster"].get("keep_best_by")
    rows = reports[-1].rows
    metrics = {ROWS: rows} if best_by is None else {ROWS: rows, SCORE: _score(rows[-1], best_by)}

    def upload(_: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        # With the rows: after a crash the checkpoint may be there and reports up to it lost.
        kept = {_STATE: state, _REPORTS: [report._asdict() for report in reports]}
        # A worker that was given up for lost may have got there first, with the same state.
        with contextlib.suppress(AlreadyCommittedError):
            commit_training_state(_checkpoints(this_run) / name, kept)
        storage: Any = ray.train.get_context().get_storage()
        path = storage.build_checkpoint_path_from_name(name)
        return ray.train.Checkpoint(path, storage.storage_filesystem)

    with tempfile.TemporaryDirectory() as nothing:  # Ray wants a folder; ours needs none
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(nothing),
            checkpoint_dir_name=place.name,
            checkpoint_upload_fn=upload,
        )


def _score(row: Row, best_by: str) -> float:
    name = best_by.removeprefix("-")
    if name not in row:
        raise ValueError(
            f"cluster.keep_best_by is {best_by!r}, which names no metric of this job; expected one "
            f"of {', '.join(row)}"
        )
    value = row[name]
    if value is None or math.isnan(value):
        return -math.inf  # not measured in this round
    return float(value if name == best_by else -value)


def restore(state: Resumable, this_run: Run, *, workers: Workers, device: torch.device) -> Resumed:
    """Load the newest whole checkpoint of the run into ``state``, if there is one.

    All workers must call it, in a train loop. Rank 0 decides which one, the others load the same.
    """
    decision = torch.zeros(3, dtype=torch.float64, device=device)
    rows: list[Row] = []
    if workers.rank == 0:
        loaded, attempt = _load_newest(state, this_run, rows)
        decision += torch.tensor([*loaded, attempt], device=device)
    workers.sum_in_place([decision])
    num_done, loaded_attempt, attempt = (int(number) for number in decision.tolist())
    if workers.rank != 0 and num_done > 0:
        name = Place(num_done, loaded_attempt).name
        kept: Any = read_training_state(_checkpoints(this_run) / name)
        state.load_state_dict(kept[_STATE])
    return Resumed(attempt, rows)


def _load_newest(state: Resumable, this_run: Run, rows: list[Row]) -> tuple[Place, int]:
    """Place of what was loaded, of round 0 if nothing was, and the attempt that this begins."""
    folder = _checkpoints(this_run)
    # Not what Ray registered: a checkpoint can be whole before the controller hears of it.
    places = _places(folder)
    last_attempt = max((place.attempt for place in places), default=1)
    for place in reversed(places):
        try:
            kept: Any = read_training_state(folder / place.name)
        except DAMAGED as error:
            rows.append({NOTICE: f"checkpoint {place.name} is passed over: {error}"})
            continue
        state.load_state_dict(kept[_STATE])
        attempt = last_attempt + bool(rows)
        if rows:
            rows.append({NOTICE: f"resuming from {place.name}"})
        registered = ray.train.get_checkpoint()
        known = 0 if registered is None else _num_done(PurePosixPath(registered.path).name)
        for report in (Report(**fields) for fields in kept[_REPORTS]):
            if report.num_done > known:
                rows += report.rows
        return place, attempt
    if rows:
        rows.append({NOTICE: "no checkpoint is whole: starting again"})
    return Place(0, 0), last_attempt + bool(rows)


def copy_checkpoint(source: Location, destination: Location, *, num_done: int) -> None:
    """Give the run at ``destination`` what the one at ``source`` had after so many rounds.

    Raises:
        JobError: it has no such checkpoint.
    """
    places = [place for place in _places(source / RUN_NAME) if place.num_done == num_done]
    if not places:
        raise JobError(
            f"{source} has no checkpoint of round {num_done}, which another run is to go on from; "
            "expected it to be kept"
        )
    name = places[-1].name
    for _ in copy_commit(source / RUN_NAME / name, destination / RUN_NAME / name):
        pass


def _places(folder: Location) -> list[Place]:
    """Places of the whole checkpoints in ``folder``, the oldest first."""
    matches = map(_COMMITTED.fullmatch, open_blobs(folder).list("round-"))
    return sorted(Place(int(match[1]), int(match[2])) for match in matches if match)


def _num_done(name: str) -> int:
    return int(name.split("-")[1])


def _checkpoints(this_run: Run) -> Location:
    return this_run.state / RUN_NAME
