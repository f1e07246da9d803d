"""Named bytes in one location, on disk or on S3, behind the same verbs.

Guarantee: a blob is there completely or not at all, whatever happens while it is written, and
``put_if_absent`` has exactly one winner.
"""

import os
import shutil
from pathlib import Path
from typing import BinaryIO, Protocol

from storage.errors import AlreadyCommittedError, BlobMissingError
from storage.local_files import PIECE_BYTES, complete_temp_file, is_temp, os_errors_explained
from storage.location import Address, Location, parse_location


class BlobStore(Protocol):
    """Blobs of one location. Names are relative, with ``/`` between parts."""

    def put(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, replacing what was there in one step."""

    def put_file(self, name: str, path: Path) -> None:
        """As :meth:`put`, with what is in the file ``path``, which is never in memory whole."""

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

    def get_file(self, name: str, path: Path) -> None:
        """Write the blob to the file ``path``, which is replaced once all of it has arrived.

        Raises:
            BlobMissingError: no blob has that name; ``path`` stays as it is.
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


class LocalBlobs:
    """Blobs as files below one folder, which is created by the first write."""

    def __init__(self, location: Location) -> None:
        """Keep blobs below ``location``, a local one."""
        self._location = location
        self._root = location.path

    def put(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put`."""
        path = (self._location / name).path
        with os_errors_explained(path), complete_temp_file(path, lambda f: f.write(data)) as temp:
            os.replace(temp, path)

    def put_file(self, name: str, path: Path) -> None:
        """See :meth:`BlobStore.put_file`."""
        target = (self._location / name).path
        with os_errors_explained(path):
            source = path.open("rb")
        with source:
            _copy(source, target)

    def put_if_absent(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put_if_absent`."""
        path = (self._location / name).path
        with os_errors_explained(path), complete_temp_file(path, lambda f: f.write(data)) as temp:
            try:
                # Unlike rename, link fails if the name is taken, also between NFS clients.
                os.link(temp, path)
            except FileExistsError as error:
                # An NFS client that lost the answer asks again, and then meets its own link.
                if not os.path.samefile(temp, path):
                    raise AlreadyCommittedError(
                        f"{path} already exists and is never overwritten; expected an unused name"
                    ) from error

    def get(self, name: str) -> bytes:
        """See :meth:`BlobStore.get`."""
        with self.open(name) as file, os_errors_explained(self._root / name):
            return file.read()

    def get_file(self, name: str, path: Path) -> None:
        """See :meth:`BlobStore.get_file`."""
        with self.open(name) as source:
            _copy(source, path)

    def open(self, name: str) -> BinaryIO:
        """See :meth:`BlobStore.open`."""
        path = (self._location / name).path
        with os_errors_explained(path):
            try:
                return path.open("rb")
            except (FileNotFoundError, NotADirectoryError) as error:
                raise BlobMissingError(
                    f"{path} does not exist; expected a file (check the folder and the name)"
                ) from error

    def exists(self, name: str) -> bool:
        """See :meth:`BlobStore.exists`."""
        path = (self._location / name).path
        with os_errors_explained(path):
            return path.is_file()

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`BlobStore.list`."""
        names = []
        with os_errors_explained(self._root):
            for folder, _, files in os.walk(self._root, onerror=_raise, followlinks=True):
                relative = Path(folder).relative_to(self._root)
                names += [(relative / f).as_posix() for f in files if not is_temp(f)]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """See :meth:`BlobStore.delete`."""
        path = (self._location / name).path
        with os_errors_explained(path):
            path.unlink(missing_ok=True)


def _copy(source: BinaryIO, path: Path) -> None:
    def fill(file: BinaryIO) -> None:
        shutil.copyfileobj(source, file, PIECE_BYTES)

    with os_errors_explained(path), complete_temp_file(path, fill) as temp:
        os.replace(temp, path)


def _raise(error: OSError) -> None:
    # A folder that was never written to holds nothing; any other failure must not look empty.
    if not isinstance(error, FileNotFoundError):
        raise error
