"""Publishing a set of blobs all together or not at all, and at most once.

Guarantee: blobs go first, under names that contain their SHA-256; the manifest goes last, and only
if none is there. A reader that starts from the manifest therefore sees nothing or everything, and
checks every byte it reads.
"""

import hashlib
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from storage.blobs import BlobStore, open_blobs
from storage.errors import AlreadyCommittedError, BlobMissingError, NotCommittedError
from storage.local_files import os_errors_explained, temp_beside
from storage.location import Address, Location, parse_location
from storage.manifest import MANIFEST_NAME, Manifest, Part, require_file_name, require_json
from storage.parts import digest, require_match, require_staged, store_bytes, store_file

# One request on S3: large enough to stream at full speed, small enough for any machine.
_CHUNK_BYTES: Final = 16 * 2**20


def stage(
    location: Address, name: str, data: bytes | Path, *, blobs: BlobStore | None = None
) -> Part:
    """Store one part ahead of its commit; no reader sees it until :func:`commit` names it.

    Args:
        location: where the commit will be.
        name: plain file name of the part, as for :func:`commit`.
        data: its content, or the path of a file that has it, which is read in pieces and may be
            larger than memory. Staging the same content again changes nothing.
        blobs: those of ``location``, where the caller has them open; saves connecting again.

    Returns:
        What :func:`commit` takes in place of ``data``, in this process or in another.

    Raises:
        ValueError: ``name`` is no plain file name, or the file changed while it was staged.
        LocationError: the file cannot be read.
    """
    require_file_name(name)
    blobs = open_blobs(location) if blobs is None else blobs
    if isinstance(data, Path):
        return store_file(name, data, blobs)
    return store_bytes(name, data, blobs)


def commit(
    location: Address,
    parts: Mapping[str, bytes | Path | Part],
    *,
    kind: str,
    description: Mapping[str, object],
    blobs: BlobStore | None = None,
) -> Manifest:
    """Publish ``parts`` at ``location`` all together or not at all, and at most once.

    Args:
        location: where; nothing may be committed there yet.
        parts: plain file name, for example ``model.safetensors``, to content as for
            :func:`stage`. Stored as ``model.<sha256>.safetensors``, so other tools open it by its
            suffix. A part that was staged here before is not stored again.
        kind: what it is, for example ``model``.
        description: how it was made; anything JSON can hold.
        blobs: those of ``location``, where the caller has them open; saves connecting again.

    Raises:
        AlreadyCommittedError: ``location`` was committed before; that commit stands untouched.
        BlobMissingError: a staged part is not there any more; nothing is committed.
        ValueError: a part name is no plain file name, a file changed while it was stored, or JSON
            cannot hold the description.
    """
    location = parse_location(location)
    for name in parts:
        require_file_name(name)
    require_json(description, name="description")
    blobs = open_blobs(location) if blobs is None else blobs
    # Only to fail before gigabytes are uploaded; who wins is decided by put_if_absent below.
    if blobs.exists(MANIFEST_NAME):
        raise _already_committed(location)
    staged = {name: part for name, part in parts.items() if isinstance(part, Part)}
    require_staged(location, staged, blobs)
    entries = {
        name: part if isinstance(part, Part) else stage(location, name, part, blobs=blobs)
        for name, part in sorted(parts.items())
    }
    manifest = Manifest(
        kind=kind,
        created=datetime.now(UTC).isoformat(),
        description=dict(description),
        parts=entries,
    ).to_json()
    # The manifest is the commit point. A crash above leaves blobs that no reader lists; writing
    # it first would expose a model without its weights.
    try:
        blobs.put_if_absent(MANIFEST_NAME, manifest)
    except AlreadyCommittedError as error:
        # A retry after a lost answer meets our own manifest, which is a success.
        if blobs.get(MANIFEST_NAME) != manifest:
            raise _already_committed(location) from error
    return Manifest.from_json(manifest, location)  # as every reader will see it


def read_manifest(location: Address, *, blobs: BlobStore | None = None) -> Manifest:
    """Return what is committed at ``location``.

    Args:
        location: where.
        blobs: its own, where the caller has them open; saves connecting again.

    Raises:
        NotCommittedError: nothing is.
        ManifestError: something is, but not in a form this version reads.
    """
    location = parse_location(location)
    blobs = open_blobs(location) if blobs is None else blobs
    try:
        data = blobs.get(MANIFEST_NAME)
    except BlobMissingError as error:
        raise NotCommittedError(
            f"{location} has no {MANIFEST_NAME}, so nothing is committed there; expected the"
            " location that a job printed (check the address, and that its job has finished)"
        ) from error
    return Manifest.from_json(data, location)


def read_part(
    location: Address,
    name: str,
    *,
    manifest: Manifest | None = None,
    blobs: BlobStore | None = None,
) -> bytes:
    """Return the part ``name``, checked byte for byte against the manifest.

    Args:
        location: where it was committed.
        name: as given to :func:`commit`.
        manifest: ``location``'s, where the caller has it already: saves one request.
        blobs: those of ``location``, where the caller has them open; saves connecting again.

    Raises:
        NotCommittedError: nothing is committed at ``location``, or nothing of that name.
        DigestMismatchError: the stored bytes are not those that were committed.
        BlobMissingError: the blob was deleted after it was committed.
    """
    location = parse_location(location)
    blobs = open_blobs(location) if blobs is None else blobs
    manifest = read_manifest(location, blobs=blobs) if manifest is None else manifest
    part = _find_part(location, name, manifest)
    data = blobs.get(part.path)
    require_match(location, part, len(data), hashlib.sha256(data).hexdigest())
    return data


def fetch_part(
    location: Address,
    name: str,
    path: Path,
    *,
    manifest: Manifest | None = None,
    blobs: BlobStore | None = None,
) -> None:
    """Write the part ``name`` to the file ``path``, which is replaced only by the right bytes.

    Args:
        location: where it was committed.
        name: as given to :func:`commit`.
        path: where to; its folder is created.
        manifest: ``location``'s, where the caller has it already: saves one request.
        blobs: those of ``location``, where the caller has them open; saves connecting again.

    Raises:
        NotCommittedError: nothing is committed at ``location``, or nothing of that name.
        DigestMismatchError: the stored bytes are not those that were committed.
        BlobMissingError: the blob was deleted after it was committed.
        LocationError: ``path`` cannot be written.
    """
    location = parse_location(location)
    blobs = open_blobs(location) if blobs is None else blobs
    manifest = read_manifest(location, blobs=blobs) if manifest is None else manifest
    part = _find_part(location, name, manifest)
    with os_errors_explained(path), temp_beside(path) as temp:
        blobs.get_file(part.path, temp)
        require_match(location, part, *digest(temp))
        os.replace(temp, path)


def check_part(
    location: Address, name: str, *, manifest: Manifest, blobs: BlobStore | None = None
) -> None:
    """Check the part ``name`` against the manifest without holding it in memory.

    Args:
        location: where it was committed.
        name: as given to :func:`commit`.
        manifest: ``location``'s.
        blobs: those of ``location``, where the caller has them open; saves connecting again.

    Raises:
        NotCommittedError: nothing of that name is committed.
        DigestMismatchError: the stored bytes are not those that were committed.
        BlobMissingError: the blob was deleted after it was committed.
    """
    location = parse_location(location)
    part = _find_part(location, name, manifest)
    blobs = open_blobs(location) if blobs is None else blobs
    sha256, size_bytes = hashlib.sha256(), 0
    with blobs.open(part.path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size_bytes += len(chunk)
    require_match(location, part, size_bytes, sha256.hexdigest())


def is_committed(location: Address) -> bool:
    """Whether something is committed at ``location``."""
    return open_blobs(location).exists(MANIFEST_NAME)


def _find_part(location: Location, name: str, manifest: Manifest) -> Part:
    if name not in manifest.parts:
        raise NotCommittedError(
            f"{location} is a {manifest.kind} without a part {name!r};"
            f" expected one of its parts: {', '.join(sorted(manifest.parts)) or '(it has none)'}"
        )
    return manifest.parts[name]


def _already_committed(location: Location) -> AlreadyCommittedError:
    return AlreadyCommittedError(
        f"{location} already has a {MANIFEST_NAME}; what is committed is never rewritten,"
        " use a new location"
    )
