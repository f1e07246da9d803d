"""Writing a file on this machine so that its name never stands for half of it.

Guarantee: a name appears when all bytes are on the disk, under a name that nobody else lists until
then; whatever interrupts the writer leaves the old file, or none, and at most a temporary one.
"""

import errno
import itertools
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from storage.errors import LocationError, StorageError, UnavailableError

# Copies and digests go through memory in pieces of this size.
PIECE_BYTES: Final = 2**20

_TEMP_PREFIX: Final = ".ringfence-"
_TEMP_SUFFIX: Final = ".tmp"
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Network file systems answer these when a server is away for a while.
_TRANSIENT: Final = (errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN)


@contextmanager
def temp_beside(path: Path) -> Iterator[Path]:
    """An unused name in the folder of ``path``, which is created; gone after the block."""
    _make_folder(path.parent)
    # Not tempfile: its files are readable by their owner only, and a location is shared.
    temp = path.parent / f"{_TEMP_PREFIX}{uuid.uuid4().hex}{_TEMP_SUFFIX}"
    try:
        yield temp
    finally:
        temp.unlink(missing_ok=True)


@contextmanager
def complete_temp_file(path: Path, fill: Callable[[BinaryIO], object]) -> Iterator[Path]:
    """A file beside ``path`` that holds what ``fill`` wrote to it, durably; gone after the block.

    The block gives it the name ``path``, which is durable too once the block is left.
    """
    with temp_beside(path) as temp:
        with temp.open("xb") as file:
            fill(file)
            file.flush()
            # Before the name appears: otherwise a power cut can leave the name with no bytes.
            os.fsync(file.fileno())
        yield temp
        _sync_folder(path.parent)


def is_temp(file_name: str) -> bool:
    """Whether a file of that name is one that is, or was, being written."""
    return file_name.startswith(_TEMP_PREFIX) and file_name.endswith(_TEMP_SUFFIX)


def _make_folder(folder: Path) -> None:
    missing = itertools.takewhile(lambda f: not f.exists(), (folder, *folder.parents))
    made = list(missing)
    folder.mkdir(parents=True, exist_ok=True)
    for new in reversed(made):  # a folder's name is kept by its parent
        _sync_folder(new.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors_explained(path: Path) -> Iterator[None]:
    """Turn an ``OSError`` inside the block into a :class:`StorageError` about ``path``."""
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
