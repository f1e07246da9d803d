"""Named bytes in one location, on disk or on S3, behind the same six verbs.

Guarantee: a blob is there completely or not at all, whatever happens while it is written, and
``put_if_absent`` has exactly one winner.
"""

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from storage.errors import (
    AlreadyCommittedError,
    BlobMissingError,
    LocationError,
    StorageError,
    UnavailableError,
)
from storage.location import Address, Location, parse_location


class BlobStore(Protocol):
    """Blobs of one location. Names are relative, with ``/`` between parts."""

    def put(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, replacing what was there in one step."""

    def put_if_absent(self, name: str, data: bytes) -> None:
        """Store ``data`` unless ``name`` exists; of several rivals exactly one succeeds.

        Raises:
            AlreadyCommittedError: ``name`` exists; it stays as it is.
        """

    def get(self, name: str) -> bytes:
        """Return the whole blob.

        Raises:
            BlobMissingError: no blob has that name.
        """

    def open(self, name: str) -> BinaryIO:
        """Open the blob for seeking and reading, without reading it as a whole.

        Raises:
            BlobMissingError: no blob has that name.
        """

    def exists(self, name: str) -> bool:
        """Whether a complete blob of that name is there."""

    def list(self, prefix: str = "") -> list[str]:
        """Names of all blobs that start with ``prefix``, in folders too, sorted."""

    def delete(self, name: str) -> None:
        """Remove the blob; one that is not there is no error."""


def open_blobs(location: Address) -> BlobStore:
    """Return the blobs of ``location``; nothing has to exist there yet.

    Raises:
        LocationError: ``location`` is malformed, or S3 is not configured at all.
    """
    location = parse_location(location)
    if location.is_local:
        return LocalBlobs(location)
    # Imported here: loading boto3 takes a third of a second that local runs need not spend.
    from storage.s3_blobs import S3Blobs

    return S3Blobs(location)


_TEMP_PREFIX: Final = ".ringfence-"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Network file systems answer these when a server is away for a while.
_TRANSIENT: Final = (errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)


class LocalBlobs:
    """Blobs as files below one folder, which is created by the first write."""

    def __init__(self, location: Location) -> None:
        """Keep blobs below ``location``, a local one."""
        self._location = location
        self._root = location.path

    def put(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put`."""
        path = (self._location / name).path
        with _os_errors_explained(path), _complete_temp_file(path, data) as temp:
            os.replace(temp, path)

    def put_if_absent(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put_if_absent`."""
        path = (self._location / name).path
        with _os_errors_explained(path), _complete_temp_file(path, data) as temp:
            try:
                # Unlike rename, link fails if the name is taken, also between NFS clients.
                os.link(temp, path)
            except FileExistsError as error:
                raise AlreadyCommittedError(
                    f"{path} already exists and is never overwritten; expected an unused name"
                ) from error

    def get(self, name: str) -> bytes:
        """See :meth:`BlobStore.get`."""
        with self.open(name) as file, _os_errors_explained(self._root / name):
            return file.read()

    def open(self, name: str) -> BinaryIO:
        """See :meth:`BlobStore.open`."""
        path = (self._location / name).path
        with _os_errors_explained(path):
            try:
                return path.open("rb")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise BlobMissingError(
                    f"{path} does not exist; expected a file (check the folder and the name)"
                ) from error

    def exists(self, name: str) -> bool:
        """See :meth:`BlobStore.exists`."""
        path = (self._location / name).path
        with _os_errors_explained(path):
            return path.is_file()

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`BlobStore.list`."""
        names = []
        with _os_errors_explained(self._root):
            for folder, _, files in os.walk(self._root, onerror=_raise, followlinks=True):
                relative = Path(folder).relative_to(self._root)
                names += [(relative / f).as_posix() for f in files if not _is_temp(f)]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """See :meth:`BlobStore.delete`."""
        path = (self._location / name).path
        with _os_errors_explained(path):
            path.unlink(missing_ok=True)


@contextmanager
def _complete_temp_file(path: Path, data: bytes) -> Iterator[Path]:
    """A file beside ``path`` that holds ``data`` durably, and is gone after the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are readable by their owner only, and a location is shared.
    temp = path.parent / f"{_TEMP_PREFIX}{uuid.uuid4().hex}.tmp"
    try:
        with temp.open("xb") as file:
            file.write(data)
            file.flush()
            # Before the name appears: otherwise a power cut can leave the name with no bytes.
            os.fsync(file.fileno())
        yield temp
        _sync_folder(path.parent)
    finally:
        temp.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_temp(file_name: str) -> bool:
    return file_name.startswith(_TEMP_PREFIX) and file_name.endswith(".tmp")


def _raise(error: OSError) -> None:
    # A folder that was never written to holds nothing; any other failure must not look empty.
    if not isinstance(error, FileNotFoundError):
        raise error


@contextmanager
def _os_errors_explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _explain(error, path) from error


def _explain(error: OSError, path: Path) -> StorageError:
    reason = f"{path} cannot be accessed ({error.strerror or type(error).__name__})"
    if error.errno in _TRANSIENT:
        return UnavailableError(f"{reason}; expected the file system to answer (try again later)")
    if error.errno in _FULL:
        return LocationError(f"{reason}; expected free space on that file system")
    if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
        return LocationError(
            f"{reason}; expected permission, and a file system with hard links, which publishing"
            " exactly once relies on"
        )
    return LocationError(f"{reason}; expected a path that this user may read and write")
