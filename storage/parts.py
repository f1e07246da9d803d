"""Storing one part under its digest, from memory or from a file, and checking it when it is read.

Guarantee: a part's stored name contains the SHA-256 of its bytes, and bytes with another one are
never taken for it.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from storage.blobs import BlobStore
from storage.errors import BlobMissingError, DigestMismatchError
from storage.local_files import os_errors_explained
from storage.location import Location
from storage.manifest import Part


def store_bytes(name: str, data: bytes, blobs: BlobStore) -> Part:
    """Store ``data`` as the part ``name``."""
    part = _part(name, len(data), hashlib.sha256(data).hexdigest())
    blobs.put(part.path, data)
    return part


def store_file(name: str, source: Path, blobs: BlobStore) -> Part:
    """Store what is in the file ``source`` as the part ``name``.

    Raises:
        ValueError: the file changed meanwhile.
    """
    before = _state(source)
    part = _part(name, *digest(source))
    blobs.put_file(part.path, source)
    # The file is read twice, and the name says what was read first.
    if _state(source) != before:
        raise ValueError(
            f"part {name!r} is {source}, which was written to while it was stored;"
            " expected a finished file"
        )
    return part


def digest(path: Path) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file, read in pieces."""
    with os_errors_explained(path), path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), sha256


def require_match(location: Location, part: Part, size_bytes: int, sha256: str) -> None:
    """Refuse bytes that are not those of ``part``.

    Raises:
        DigestMismatchError: they differ in number or in value.
    """
    if (size_bytes, sha256) != (part.size_bytes, part.sha256):
        raise DigestMismatchError(
            f"{location / part.path} has {size_bytes} bytes with SHA-256 {sha256}, so it changed"
            f" after it was committed; expected {part.size_bytes} bytes with {part.sha256}"
            " (restore it, or make it again at a new location)"
        )


def require_staged(location: Location, parts: Mapping[str, Part], blobs: BlobStore) -> None:
    """Refuse parts that are not stored any more.

    Raises:
        BlobMissingError: one is not there.
    """
    # One listing, where asking for each of a dataset's thousands of blobs would take minutes.
    there = set(blobs.list()) if parts else set()
    for name, part in parts.items():
        if part.path not in there:
            raise BlobMissingError(
                f"{location / part.path} is not there, though part {name!r} was staged as it;"
                " expected a blob staged at this location (stage the part again)"
            )


def _part(name: str, size_bytes: int, sha256: str) -> Part:
    file = PurePosixPath(name)
    path = f"{file.stem}.{sha256}{file.suffix}"
    return Part(path=path, sha256=sha256, size_bytes=size_bytes)


def _state(path: Path) -> tuple[int, int, int]:
    with os_errors_explained(path):
        found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns
