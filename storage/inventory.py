"""What there is at and below a location: commits, runs that were begun, and the files of both.

Guarantee: listed once, however many commits there are; a file that belongs to a commit or to a run
is found as that one's and no other's.
"""

import json
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, NamedTuple, TypeVar

from storage.blobs import BlobStore, open_blobs
from storage.errors import NotCommittedError, StorageError
from storage.listing import Entry, list_entries
from storage.location import Address, Location, parse_location
from storage.manifest import MANIFEST_NAME, Manifest

RUN_SUFFIX: Final = ".run"
"""A run keeps its state beside its output, at ``OUTPUT.run``."""
RUN_RECIPE: Final = "recipe.json"
"""What makes a folder of that name the state of a run: the first file that is written there."""

STATE_KIND: Final = "training-state"
"""Kind of what a run commits for itself, below its state: the checkpoints that it resumes from."""

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_SUFFIX: Final = ".safetensors.index.json"
WEIGHTS_SUFFIXES: Final = (".safetensors", INDEX_SUFFIX)
"""Names that end so are of weights that lie open, in one file or in several."""

_STATE: Final = re.compile(rf"[^/]{re.escape(RUN_SUFFIX)}$")
# Manifests are small: reading one is waiting for an answer.
_THREADS: Final = 16
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Output:
    """A folder with files in it, committed or not, and the state of the run whose output it is."""

    folder: str
    """Relative to the inventory's base."""
    files: list[Entry] = field(default_factory=list)
    """Directly in it."""
    state: list[Entry] = field(default_factory=list)
    """Everything below its `.run`, commits in there included; empty where no run was begun."""
    is_in_run: bool = False
    """Whether it is a commit that lies in the state of a run."""

    @property
    def is_committed(self) -> bool:
        """Whether a manifest is there."""
        return any(entry.name == _within(self.folder, MANIFEST_NAME) for entry in self.files)

    @property
    def last_active(self) -> float:
        """When anything in it, or of its run, was last written, in seconds since the epoch."""
        return max(entry.modified for entry in (*self.files, *self.state))


class Inventory(NamedTuple):
    """Everything at and below a location."""

    base: Location
    """What names are relative to: the location's parent, because a run lies beside its output."""
    outputs: list[Output]
    """By name."""

    def location(self, folder: str) -> Location:
        """Where ``folder`` is."""
        return self.base / folder if folder else self.base


def take_inventory(location: Address, *, with_uploads: bool = False) -> Inventory:
    """List what is at and below ``location``, and the state of the run whose output it is.

    Args:
        location: a committed location or the output of a run, or one above several.
        with_uploads: list what is being uploaded to S3, too.

    Raises:
        NotCommittedError: nothing at all is there.
        StorageError: it cannot be listed.
    """
    location = parse_location(location)
    base = location.parent if location.name else location
    folders = {location.name}
    if location.name:
        # An output and its run belong together, whichever of the two was named.
        folders |= {location.name + RUN_SUFFIX, location.name.removesuffix(RUN_SUFFIX)} - {""}
    entries = [entry for folder in sorted(folders) for entry in list_entries(base, folder)]
    if with_uploads and not location.is_local:
        from storage.unfinished_uploads import list_uploads  # boto3: see open_blobs

        entries += [entry for folder in sorted(folders) for entry in list_uploads(base, folder)]
    if not entries:
        raise NotCommittedError(
            f"{location} holds nothing; expected something committed there or below (check the"
            " address)"
        )
    return Inventory(base, _outputs(entries))


def read_manifests(inventory: Inventory) -> dict[str, Manifest | StorageError]:
    """Read the manifests of all that is committed, several at a time.

    Returns:
        By folder: the manifest, or why it cannot be read. The checkpoints of a run are left out:
        they are its state.
    """

    def read(folder: str, blobs: BlobStore) -> Manifest | StorageError:
        try:
            data = blobs.get(_within(folder, MANIFEST_NAME))
            return Manifest.from_json(data, inventory.location(folder))
        except StorageError as error:
            return error

    committed = {output.folder: output for output in inventory.outputs if output.is_committed}
    found = _read_each([*committed], read, inventory)
    return {
        folder: manifest
        for folder, manifest in found.items()
        if not (
            committed[folder].is_in_run
            and isinstance(manifest, Manifest)
            and manifest.kind == STATE_KIND
        )
    }


def read_commands(inventory: Inventory) -> dict[str, str]:
    """Read which command began each run, several at a time.

    Returns:
        By the output's folder; what only looks like the state of a run is left out.
    """

    def read(folder: str, blobs: BlobStore) -> str | None:
        try:
            recipe = json.loads(blobs.get(f"{folder}{RUN_SUFFIX}/{RUN_RECIPE}"))
        except (StorageError, ValueError):
            return None
        command = recipe.get("command") if isinstance(recipe, dict) else None
        return command if isinstance(command, str) else None

    folders = [output.folder for output in inventory.outputs if output.state]
    commands = _read_each(folders, read, inventory)
    return {folder: command for folder, command in commands.items() if command is not None}


def _read_each(
    folders: Sequence[str], read: Callable[[str, BlobStore], _T], inventory: Inventory
) -> dict[str, _T]:
    if not folders:
        return {}
    blobs = open_blobs(inventory.base)
    with ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(folders, pool.map(read, folders, repeat(blobs)), strict=True))


def _outputs(entries: Sequence[Entry]) -> list[Output]:
    folders = {entry: entry.name.rpartition("/")[0] for entry in entries}
    commits = {folder for e, folder in folders.items() if e.name == _within(folder, MANIFEST_NAME)}
    states = {
        folder
        for entry, folder in folders.items()
        if entry.name == f"{folder}/{RUN_RECIPE}" and _STATE.search(folder)
    }
    outputs: dict[str, Output] = {}
    for entry, folder in folders.items():
        state = _outermost(folder, states)
        if state is not None:
            key = state.removesuffix(RUN_SUFFIX)
            outputs.setdefault(key, Output(folder=key)).state.append(entry)
        if state is None or folder in commits:
            output = Output(folder=folder, is_in_run=state is not None)
            outputs.setdefault(folder, output).files.append(entry)
    return [outputs[key] for key in sorted(outputs)]


def _outermost(folder: str, states: set[str]) -> str | None:
    """The state of a run that ``folder`` is or lies in; a run inside a run is part of it."""
    parts = folder.split("/")
    paths = ("/".join(parts[: end + 1]) for end in range(len(parts)))
    return next((path for path in paths if path in states), None)


def _within(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
