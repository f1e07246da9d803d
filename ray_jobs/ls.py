"""`ringfence ls`: what is kept at a location and below, a line each."""

import dataclasses
import json
import logging
import time
from dataclasses import KW_ONLY, dataclass
from datetime import UTC, datetime

from ray_jobs.tables import age_text, columns, size_text
from storage.errors import StorageError
from storage.inventory import Output, read_commands, read_manifests, take_inventory
from storage.location import parse_location
from storage.manifest import Manifest

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ls:
    """List what is committed at or below a location, and what was begun there."""

    location: str
    """A folder or an S3 prefix: what is committed there, and at any depth below it, is listed."""
    _: KW_ONLY
    json: bool = False
    """Print one JSON list, for programs."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Something that was committed, or whose run was begun and is not finished."""

    location: str
    kind: str
    """Of the commit; `unfinished` if there is none, `unreadable` if its manifest cannot be read."""
    created: str
    """ISO 8601, UTC: when it was committed, or begun."""
    size_bytes: int
    """Of all parts; where there is no manifest, of all files that are there, with the run's."""
    commit_id: str | None = None
    note: str | None = None
    """Which command it is unfinished of, or why it is unreadable."""


def run(job: Ls) -> str:
    """Return the list; empty where nothing is committed and nothing was begun.

    Raises:
        NotCommittedError: there is no file at all.
        StorageError: the location cannot be listed.
    """
    location = parse_location(job.location)
    inventory = take_inventory(location)
    manifests, commands = read_manifests(inventory), read_commands(inventory)
    found: dict[str, Kept] = {}
    for output in inventory.outputs:
        where = str(inventory.location(output.folder))
        if (manifest := manifests.get(output.folder)) is not None:
            found[output.folder] = _committed(where, manifest, output)
        elif (command := commands.get(output.folder)) is not None:
            found[output.folder] = _unfinished(where, command, output)
    if job.json:
        return json.dumps([dataclasses.asdict(kept) for kept in found.values()], indent=2)
    if not found:
        logger.info("nothing is committed, and nothing was begun, at or below %s", location)
    rows = [
        (
            kept.kind,
            kept.created[:16].replace("T", " "),
            size_text(kept.size_bytes),
            "." if folder == location.name else folder.removeprefix(f"{location.name}/"),
            f"({kept.note})" if kept.note else "",
        )
        for folder, kept in found.items()
    ]
    return "\n".join(columns(rows, right=2))


def _committed(where: str, manifest: Manifest | StorageError, output: Output) -> Kept:
    if isinstance(manifest, StorageError):
        return Kept(
            location=where,
            kind="unreadable",
            created=_iso(min(entry.modified for entry in output.files)),
            size_bytes=sum(entry.size_bytes for entry in output.files),
            note=str(manifest),
        )
    return Kept(
        location=where,
        kind=manifest.kind,
        created=manifest.created,
        size_bytes=sum(part.size_bytes for part in manifest.parts.values()),
        commit_id=manifest.commit_id,
    )


def _unfinished(where: str, command: str, output: Output) -> Kept:
    files = [*output.files, *output.state]
    return Kept(
        location=where,
        kind="unfinished",
        created=_iso(min(entry.modified for entry in files)),
        size_bytes=sum(entry.size_bytes for entry in files),
        note=f"{command}, last active {age_text(time.time() - output.last_active)} ago",
    )


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
