"""What nobody will read again: parts never committed, state of old runs, writes that broke off.

Guarantee: no result that was committed is ever among it, nor anything whose name does not say that
this program wrote it, nor anything of an output where anything at all was written lately. The last
is what keeps a run in progress safe: it writes whenever it takes a checkpoint or finishes a unit of
work, and every file of its output and of its state, uploads included, vouches for all the others.
"""

import contextlib
import re
import time
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import PurePosixPath
from typing import Final, NamedTuple

from storage.blobs import open_blobs
from storage.errors import NotCommittedError, StorageError
from storage.inventory import (
    RUN_RECIPE,
    RUN_SUFFIX,
    Output,
    read_commands,
    read_manifests,
    take_inventory,
)
from storage.listing import Entry
from storage.local_files import is_temp
from storage.location import Address, Location
from storage.manifest import Manifest

# As `storage.commit.stage` names what it stores.
_PART: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.[0-9a-f]{64}(\.[A-Za-z0-9._-]*)?")
# A run's curves: a person may want them long after, and no manifest holds them.
_LOGS: Final = {"metrics.jsonl", "tensorboard"}
_THREADS: Final = 16


class Leftover(NamedTuple):
    """One file, object or unfinished upload that can go."""

    base: Location
    """What its name, and its output's, is relative to."""
    output: str
    """The folder whose commit or run it was meant for."""
    what: str
    """In words, for a person."""
    entry: Entry
    last_active: float
    """When anything of the same output was last written, in seconds since the epoch."""

    @property
    def location(self) -> Location:
        """Where it is."""
        return self.base / self.entry.name

    @property
    def is_state(self) -> bool:
        """Whether it is of the run's state rather than of the output."""
        return self.entry.name.startswith(f"{self.output}{RUN_SUFFIX}/")

    @property
    def folder(self) -> Location:
        """The output or the run's state, whichever it is of."""
        name = f"{self.output}{RUN_SUFFIX}" if self.is_state else self.output
        return self.base / name if name else self.base


def leftovers(
    location: Address, *, older_than_seconds: float, now: float | None = None
) -> list[Leftover]:
    """Find what is left over at and below ``location``; what belongs to one output is together.

    Args:
        location: a committed location or the output of a run, or one above several.
        older_than_seconds: for how long nothing was written to an output or to its run's state
            before anything of it counts as left over.
        now: in seconds since the epoch; None: the clock's.

    Raises:
        NotCommittedError: nothing at all is there.
        StorageError: it cannot be listed.
    """
    now = time.time() if now is None else now
    inventory = take_inventory(location, with_uploads=True)
    manifests, commands = read_manifests(inventory), read_commands(inventory)
    found = []
    for output in inventory.outputs:
        manifest = manifests.get(output.folder)
        if isinstance(manifest, StorageError):  # it may name anything
            continue
        if output.is_in_run and manifest is None:  # a checkpoint: goes with its run's state
            continue
        if now - output.last_active < older_than_seconds:
            continue
        pieces = [*_of_output(output, manifest)]
        if output.folder in commands:
            pieces += _of_state(output, is_finished=manifest is not None, commits=manifests)
        found += [
            Leftover(inventory.base, output.folder, what, entry, output.last_active)
            for entry, what in pieces
        ]
    return found


def remove(found: Iterable[Leftover], *, older_than_seconds: float) -> Iterator[Leftover]:
    """Delete what :func:`leftovers` found and yield each piece that went.

    Every output is looked at once more before: where a run went on in the meantime, it stays.
    """
    for (base, output), group in groupby(found, key=lambda piece: (piece.base, piece.output)):
        location = base / output if output else base
        try:
            still = {
                (piece.location, piece.entry.upload_id)
                for piece in leftovers(location, older_than_seconds=older_than_seconds)
            }
        except NotCommittedError:  # somebody else has cleaned up
            continue
        pieces = [piece for piece in group if (piece.location, piece.entry.upload_id) in still]
        for _, step in groupby(sorted(pieces, key=_turn), key=_turn):
            yield from _delete(base, list(step))
        _remove_empty_folders(base, pieces)


def _of_output(output: Output, manifest: Manifest | None) -> Iterator[tuple[Entry, str]]:
    named = {part.path for part in manifest.parts.values()} if manifest else set()
    for entry in output.files:
        file = PurePosixPath(entry.name).name
        if is_temp(file):
            yield entry, "write that broke off"
        elif _PART.fullmatch(file) and entry.upload_id is not None:
            yield entry, "upload that broke off"
        elif _PART.fullmatch(file) and file not in named:
            yield entry, "part never committed"


def _of_state(
    output: Output, *, is_finished: bool, commits: Container[str]
) -> Iterator[tuple[Entry, str]]:
    what = f"state of {'a finished' if is_finished else 'an unfinished'} run"
    for entry in output.state:
        path = PurePosixPath(entry.name)
        # A result that was committed inside a run's state is judged as one.
        if str(path.parent) not in commits and not _LOGS.intersection(path.parts):
            yield entry, what


def _turn(piece: Leftover) -> int:
    # Notes of finished work go before the parts that they are of: a run that found a note without
    # its part could never end. The recipe goes last: without it the state would be nobody's.
    if piece.is_state:
        return 2 if piece.entry.name == f"{piece.output}{RUN_SUFFIX}/{RUN_RECIPE}" else 0
    return 1


def _delete(base: Location, pieces: list[Leftover]) -> Iterator[Leftover]:
    uploads = [piece.entry for piece in pieces if piece.entry.upload_id is not None]
    if uploads:
        from storage.unfinished_uploads import abort_uploads  # boto3: see open_blobs

        abort_uploads(base, uploads)
    blobs = open_blobs(base)
    names = [piece.entry.name for piece in pieces if piece.entry.upload_id is None]
    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(blobs.delete, names):
            pass
    yield from pieces


def _remove_empty_folders(base: Location, pieces: list[Leftover]) -> None:
    if not base.is_local:
        return
    folders = {base.path / parent for p in pieces for parent in PurePosixPath(p.entry.name).parents}
    for folder in sorted(folders - {base.path}, reverse=True):  # inner ones first
        with contextlib.suppress(OSError):  # not empty
            folder.rmdir()
