"""Copying what is committed to another location, on disk or on S3.

Guarantee: the copy is the same commit, its manifest byte for byte and its commit id with it; a
reader sees none of it or all of it; and what is committed at the destination is never rewritten.
"""

import functools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage.blobs import BlobStore, open_blobs
from storage.commit import fetch_part, is_committed, read_manifest
from storage.errors import AlreadyCommittedError, DigestMismatchError
from storage.listing import list_entries
from storage.location import Address, Location, parse_location
from storage.manifest import MANIFEST_NAME, Manifest, Part
from storage.parallel_parts import Count, Progress, each_part, read_through


def is_copied(source: Address, destination: Address) -> bool:
    """Whether ``destination`` has the commit of ``source`` already.

    Raises:
        NotCommittedError: nothing is committed at ``source``.
        AlreadyCommittedError: something else is committed at ``destination``.
    """
    source, destination = parse_location(source), parse_location(destination)
    manifest = read_manifest(source)
    if not is_committed(destination):
        return False
    if open_blobs(destination).get(MANIFEST_NAME) != open_blobs(source).get(MANIFEST_NAME):
        raise AlreadyCommittedError(
            f"{destination} already has a {MANIFEST_NAME}, and it is not that of {source} (commit"
            f" {manifest.commit_id}); what is committed is never rewritten, use a new location"
        )
    return True


def copy_commit(source: Address, destination: Address) -> Iterator[Progress]:
    """Copy the commit at ``source`` to ``destination``, yielding now and then how far it is.

    It is copied when the last step was taken. One that broke off goes on: parts that are at the
    destination, and are what was committed, are not sent again.

    Raises:
        NotCommittedError: nothing is committed at ``source``.
        AlreadyCommittedError: something else is committed at ``destination``.
        DigestMismatchError: a part at ``source`` is not what was committed.
        BlobMissingError: a part is not at ``source`` any more.
    """
    if is_copied(source, destination):
        return
    ends = _open(parse_location(source), parse_location(destination))
    sizes = {entry.name: entry.size_bytes for entry in list_entries(ends.destination, "")}

    def copy(name: str, part: Part, count: Count) -> None:
        if sizes.get(part.path) != part.size_bytes or not _is_whole_copy(part, ends):
            _copy_part(name, part, ends)
        count(part.size_bytes)

    yield from each_part(ends.manifest.parts, copy)
    try:
        # Last, as in every commit.
        ends.copies.put_if_absent(MANIFEST_NAME, ends.blobs.get(MANIFEST_NAME))
    except AlreadyCommittedError:
        # Somebody else's copy of the same commit is a success.
        is_copied(source, destination)


class _Ends(NamedTuple):
    source: Location
    blobs: BlobStore
    manifest: Manifest
    destination: Location
    copies: BlobStore


def _open(source: Location, destination: Location) -> _Ends:
    manifest = read_manifest(source)
    return _Ends(source, open_blobs(source), manifest, destination, open_blobs(destination))


def _is_whole_copy(part: Part, ends: _Ends) -> bool:
    try:
        _check(part, ends.destination, ends.copies)
    except DigestMismatchError:
        return False
    return True


def _copy_part(name: str, part: Part, ends: _Ends) -> None:
    fetch = functools.partial(
        fetch_part, ends.source, name, manifest=ends.manifest, blobs=ends.blobs
    )
    if ends.destination.is_local:
        fetch((ends.destination / part.path).path)
    elif ends.source.is_local:
        _check(part, ends.source, ends.blobs)
        ends.copies.put_file(part.path, (ends.source / part.path).path)
    else:
        # By way of this machine's disk even within one store: none of them checks a SHA-256.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / part.path
            fetch(file)
            ends.copies.put_file(part.path, file)


def _check(part: Part, location: Location, blobs: BlobStore) -> None:
    read_through(part, location=location, blobs=blobs, count=lambda _: None)
