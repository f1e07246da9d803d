"""A run's own place beside its output: `OUTPUT.run`, where an interrupted run is found again.

The recipe is written there first, with the identity of what the run takes. The same command finds
its own recipe and goes on; another recipe with the same output, or another model at the same
location, is refused with what differs, so two runs never share state unnoticed.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, NamedTuple

from ray_jobs.errors import UsageError
from storage.blobs import open_blobs
from storage.commit import is_committed
from storage.errors import AlreadyCommittedError
from storage.inventory import RUN_RECIPE, RUN_SUFFIX
from storage.location import Location, parse_location

logger = logging.getLogger(__name__)
_PARENTS: Final = "parents"
# In the path of the folder that `ray job submit --working-dir` copied and Ray removes.
_COPY_OF_RAY: Final = "working_dir_files"


class Run(NamedTuple):
    """Where a run keeps its state and its logs."""

    output: Location
    state: Location
    """Training state: beside the output, on S3 if the output is there."""
    logs: Path
    """metrics.jsonl and tensorboard/; always on this machine."""
    recipe: dict[str, Any]
    parents: Mapping[str, object] = {}
    """What the run takes, as it was when it began: see `ray_jobs.lineage`."""


def find_run(job: Any, *, verb: str, parents: Mapping[str, object] | None = None) -> Run:
    """Return the run of ``job``, begun before or not; writes nothing.

    Args:
        job: the recipe, a dataclass with an ``output``.
        verb: the command, recorded in the recipe.
        parents: what it takes, with commit ids and digests as of now.

    Raises:
        AlreadyCommittedError: ``job.output`` is committed.
        UsageError: a run of another recipe was begun for this output, or what it takes has changed
            since; or the output would not outlive the job.
    """
    output = parse_location(job.output)
    if output.is_local and _COPY_OF_RAY in Path(output.path).parts:
        raise UsageError(
            f"output is {output}, in the copy of the folder that Ray made for this job and removes "
            "after it; expected s3://BUCKET/PREFIX, or the absolute path of a folder that all "
            "machines share"
        )
    if is_committed(output):
        raise AlreadyCommittedError(
            f"output is {output}, which is committed already and never rewritten; expected a new "
            "location"
        )
    state = output.sibling(RUN_SUFFIX)
    recipe = {"command": verb, **dataclasses.asdict(job)}
    # A recipe as it will be read back: tuples are lists there.
    recipe = json.loads(json.dumps(recipe))
    blobs = open_blobs(state)
    if blobs.exists(RUN_RECIPE):
        found = json.loads(blobs.get(RUN_RECIPE))
        recorded = found.pop(_PARENTS, {})
        found = _completed(found, job)
        differing = sorted(_differences(_without_cluster(found), _without_cluster(recipe)))
        if differing:
            raise UsageError(
                f"output is {output}, for which a run with another recipe was begun "
                f"({'; '.join(differing)}); expected the same recipe to resume it, or another "
                f"output (or remove {state})"
            )
        _check_unchanged(recorded, parents or {}, output=output, state=state)
        logger.info("resuming the run in %s", state)
    return Run(output, state, logs_beside(state), recipe, parents or {})


def _check_unchanged(
    recorded: Mapping[str, object],
    parents: Mapping[str, object],
    *,
    output: Location,
    state: Location,
) -> None:
    for name in sorted(recorded.keys() & parents.keys()):  # older versions recorded less
        if recorded[name] != parents[name]:
            raise UsageError(
                f"output is {output}, for which a run was begun when {name} was {recorded[name]}, "
                f"and it is {parents[name]} now; expected what it was begun with, or another "
                f"output (or remove {state})"
            )


def logs_beside(state: Location) -> Path:
    """Where a run with its state at ``state`` writes its logs."""
    return Path(state.path) if state.is_local else Path.cwd() / state.name


def begin(run: Run) -> None:
    """Write down that ``run`` was begun: from now on its output belongs to its recipe."""
    # Written again where a run goes on: it shows that the state is in use, see storage.leftovers.
    document = {**run.recipe, _PARENTS: run.parents}
    open_blobs(run.state).put(RUN_RECIPE, json.dumps(document, indent=2).encode())
    run.logs.mkdir(parents=True, exist_ok=True)


def provenance(run: Run) -> dict[str, object]:
    """What every manifest says of how it was made."""
    return {"recipe": run.recipe, "ringfence_version": version("ringfence")}


def _completed(found: Any, value: Any) -> Any:
    """``found``, read back from an older version's recipe, with the fields that came later.

    Those had their defaults, wherever in ``value`` they are.
    """
    if dataclasses.is_dataclass(value) and isinstance(found, dict):
        parts = {name: _completed(part, getattr(value, name, None)) for name, part in found.items()}
        return {**_defaults(value), **parts}
    if isinstance(value, list) and isinstance(found, list) and len(found) == len(value):
        return [_completed(part, own) for part, own in zip(found, value, strict=True)]
    return found


def _defaults(job: Any) -> dict[str, Any]:
    """What each field of ``job`` is where a recipe leaves it out, as it is read back."""
    values = {}
    for field in dataclasses.fields(job):
        if field.default is not dataclasses.MISSING:
            values[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
    defaults: dict[str, Any] = json.loads(json.dumps(values, default=dataclasses.asdict))
    return defaults


def _without_cluster(recipe: dict[str, Any]) -> dict[str, Any]:
    # No result depends on the cluster, so a run may be resumed on another.
    return {name: value for name, value in recipe.items() if name != "cluster"}


def _differences(old: Any, new: Any, path: str = "") -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted(old.keys() | new.keys()):
            yield from _differences(old.get(name), new.get(name), f"{path}.{name}".lstrip("."))
    elif old != new:
        yield f"{path} was {old!r}, is {new!r}"
