"""Committed parts on S3, kept on this machine: its processes download each of them once.

Guarantee: every part is compared with its digest, weights whenever they are read, files that stay
open for a long time once in each process; where the cache cannot be used, parts are read from S3
as if there were none, after one warning.

The environment says where it is: ``RINGFENCE_CACHE``, an absolute path, by default
``~/.cache/ringfence/parts``; and how much it may hold: ``RINGFENCE_CACHE_BYTES``, by default
20 GiB, 0 for no cache, and never more than half of the disk that would be free without it. What was
used longest ago goes first. What is on a local disk already is read where it is.
"""

import functools
import hashlib
import logging
import os
import shutil
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Final

from storage.blobs import BlobStore, open_blobs
from storage.cache_folder import CacheFolder, sha256_of
from storage.commit import check_part, read_manifest, read_part
from storage.location import Address, Location, parse_location
from storage.manifest import Manifest, Part

logger = logging.getLogger(__name__)

FOLDER_VARIABLE: Final = "RINGFENCE_CACHE"
BYTES_VARIABLE: Final = "RINGFENCE_CACHE_BYTES"
_DEFAULT_FOLDER: Final = "~/.cache/ringfence/parts"
# Two hundred ResNet-50 checkpoints, or one large model; little beside the local disks of cluster
# nodes.
_DEFAULT_BYTES: Final = 20 * 2**30
# One request on S3: large enough to stream at full speed, small enough for any machine.
_CHUNK_BYTES: Final = 16 * 2**20
# Of each dataset: a process may usually have 1024 files open, and has several datasets.
_MOST_HELD: Final = 128


def read_cached_part(location: Address, name: str, *, manifest: Manifest | None = None) -> bytes:
    """Return what :func:`storage.commit.read_part` does, from this machine's cache if possible.

    Args:
        location: where it was committed.
        name: as given to :func:`storage.commit.commit`.
        manifest: ``location``'s, where the caller has it already: saves one request.

    Raises:
        NotCommittedError: nothing is committed at ``location``, or nothing of that name.
        DigestMismatchError: the stored bytes are not those that were committed.
        BlobMissingError: the blob was deleted after it was committed.
        ValueError: the environment describes no cache.
    """
    location = parse_location(location)
    manifest = read_manifest(location) if manifest is None else manifest
    cache = None if location.is_local else open_cache()
    if cache is not None and name in manifest.parts:
        part = manifest.parts[name]

        def download(file: BinaryIO) -> None:
            file.write(open_blobs(location).get(part.path))  # over several connections

        try:
            while True:
                with cache.open(part, download) as file:
                    data = file.read()
                    if hashlib.sha256(data).hexdigest() == part.sha256:
                        return data
                    cache.discard(part, file)
        except OSError as error:
            _warn_once(cache.path, error)
    return read_part(location, name, manifest=manifest)


class CachedParts:
    """The parts of one commit on S3 as files, on this machine if possible.

    Safe to share between threads. Files that were opened stay on this machine as long as this
    object lives, the first of them at least: others cannot crowd them out.
    """

    def __init__(
        self, location: Location, manifest: Manifest, names: Sequence[str], *, blobs: BlobStore
    ) -> None:
        """Offer some parts; none is fetched yet.

        Where all of them together are more than the cache may hold, they are not kept: each would
        push another out before it is read again.

        Args:
            location: where they are committed.
            manifest: ``location``'s.
            names: of the parts.
            blobs: those of ``location``.

        Raises:
            ValueError: the environment describes no cache.
        """
        self._location = location
        self._manifest = manifest
        self._names = {manifest.parts[name].path: name for name in names}
        self._blobs = blobs
        self._intact: dict[str, int] = {}
        self._held: dict[str, BinaryIO] = {}
        weakref.finalize(self, _close_all, self._held)
        self._uncached: set[str] = set()
        self._cache = open_cache()
        size_bytes = sum(manifest.parts[name].size_bytes for name in names)
        if self._cache is not None and not _has_room(self._cache, size_bytes):
            self._cache = None

    def open(self, path: str) -> BinaryIO:
        """Open the part that is stored as ``path``; its bytes were checked in this process.

        Raises:
            DigestMismatchError: the stored bytes are not those that were committed.
            BlobMissingError: the blob was deleted after it was committed.
        """
        name = self._names[path]
        if self._cache is not None and path not in self._uncached:
            try:
                return self._open_cached(self._cache, self._manifest.parts[name])
            except OSError as error:
                _warn_once(self._cache.path, error)
        if path not in self._uncached:
            check_part(self._location, name, manifest=self._manifest)
            self._uncached.add(path)
        return self._blobs.open(path)

    def _open_cached(self, cache: CacheFolder, part: Part) -> BinaryIO:
        def download(file: BinaryIO) -> None:
            with self._blobs.open(part.path) as source:
                shutil.copyfileobj(source, file, _CHUNK_BYTES)

        while True:
            file = cache.open(part, download)
            if self._is_intact(part, file):
                break
            with file:
                cache.discard(part, file)
        if len(self._held) < _MOST_HELD and part.path not in self._held:
            # The same lock under another descriptor, which outlives the file that is returned.
            held = os.fdopen(os.dup(file.fileno()), "rb")
            if self._held.setdefault(part.path, held) is not held:  # another thread was faster
                held.close()
        return file

    def _is_intact(self, part: Part, file: BinaryIO) -> bool:
        inode = os.fstat(file.fileno()).st_ino
        if self._intact.get(part.path) == inode:
            return True
        if sha256_of(file) != part.sha256:
            return False
        self._intact[part.path] = inode
        return True


def open_cache() -> CacheFolder | None:
    """Return this machine's cache as the environment describes it; ``None`` where it is off.

    Raises:
        ValueError: the folder is no absolute path, or the size no number of bytes.
    """
    folder = os.environ.get(FOLDER_VARIABLE) or _DEFAULT_FOLDER
    path = Path(folder).expanduser()
    if not path.is_absolute():
        raise ValueError(
            f"{FOLDER_VARIABLE} is {folder!r}, which is another folder for each worker;"
            " expected an absolute path on a local disk"
        )
    size = os.environ.get(BYTES_VARIABLE) or str(_DEFAULT_BYTES)
    if not size.isdecimal():
        raise ValueError(
            f"{BYTES_VARIABLE} is {size!r}, which is no number of bytes;"
            f" expected one such as {_DEFAULT_BYTES}, or 0 for no cache"
        )
    return CacheFolder(path, max_bytes=int(size)) if int(size) else None


def _has_room(cache: CacheFolder, size_bytes: int) -> bool:
    try:
        room_bytes = cache.room_bytes()
    except OSError as error:
        _warn_once(cache.path, error)
        return False
    if size_bytes > room_bytes:
        logger.info("%d bytes are too many for the cache's %d bytes", size_bytes, room_bytes)
    return size_bytes <= room_bytes


def _warn_once(path: Path, error: OSError) -> None:
    if _only_warning(path).acquire(blocking=False):
        logger.warning(
            "%s cannot be used (%s), so parts are read from S3 whenever they are needed; expected"
            " a writable folder with room for them (set %s and %s)",
            path,
            error.strerror,
            FOLDER_VARIABLE,
            BYTES_VARIABLE,
        )


@functools.cache
def _only_warning(path: Path) -> threading.Lock:
    """What the first to warn of ``path`` takes and never gives back."""
    return threading.Lock()


def _close_all(files: dict[str, BinaryIO]) -> None:
    for file in files.values():
        file.close()
