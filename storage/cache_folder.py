"""Downloads by digest in one folder, shared by the processes of a machine.

Guarantee: a file has its final name only once it is complete and has its digest; of several
processes that want one at a time, one downloads it; nothing is removed while somebody reads it; and
the folder never takes more than its bound, what is still being downloaded included.

All of it rests on ``flock``, which a process that is killed lets go. A download goes to
``DIGEST.part``, which is locked while it is written; under its final name a file is locked, shared,
by everybody who reads it, until they close it.
"""

import errno
import fcntl
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final, cast

from storage.manifest import Part

logger = logging.getLogger(__name__)

_LOCK: Final = "lock"
_OURS: Final = re.compile(r"[0-9a-f]{64}(\.part)?")


class CacheFolder:
    """Files by digest, at most so many bytes. Whatever is wrong with the folder is an `OSError`."""

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        """Keep files in ``path``, which is created when it is needed.

        Args:
            path: the folder; other files in it are left alone.
            max_bytes: the most to keep, though never more than half of the disk that is free.
        """
        self.path = path
        self._max_bytes = max_bytes

    def open(self, part: Part, download: Callable[[BinaryIO], object]) -> BinaryIO:
        """Open a file that cannot be removed until it is closed, at its beginning.

        It had its digest when it was downloaded; the disk may have changed it since.

        Args:
            part: its digest and size.
            download: writes it to a file; not called where it is there.

        Raises:
            OSError: there is no room, the download has another digest, or the file system refuses.
        """
        while True:
            file = self._open_kept(part) or self._download(part, download)
            if file is not None:
                return file

    def discard(self, part: Part, file: BinaryIO) -> None:
        """Remove ``file``, which :meth:`open` returned and which turned out to be damaged."""
        logger.warning("%s does not have its digest any more; fetching it again", self._path(part))
        if _is_at(file, self._path(part)):
            self._path(part).unlink(missing_ok=True)

    def room_bytes(self) -> int:
        """How much there can be in the folder at once."""
        self.path.mkdir(parents=True, exist_ok=True)
        with self._locked():
            return self._room_bytes(sum(status.st_size for status, _ in self._files()))

    def _open_kept(self, part: Part) -> BinaryIO | None:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(self._path(part).open("rb"))
            except FileNotFoundError:
                return None
            fcntl.flock(file, fcntl.LOCK_SH)
            if os.fstat(file.fileno()).st_size != part.size_bytes:
                self.discard(part, file)
                return None
            # When it was last used; many file systems are mounted so that reading does not say.
            with suppress(PermissionError):  # another user's
                os.utime(file.fileno())
            stack.pop_all()
            return file

    def _download(self, part: Part, download: Callable[[BinaryIO], object]) -> BinaryIO | None:
        """Download ``part``; ``None`` where somebody else did meanwhile, or tried to."""
        self.path.mkdir(parents=True, exist_ok=True)
        partial = self._path(part).with_suffix(".part")
        with ExitStack() as stack:
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
            file = stack.enter_context(os.fdopen(descriptor, "r+b"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                # Shared: it is granted as soon as the other one is done, when it goes on reading.
                fcntl.flock(file, fcntl.LOCK_SH)
                return None
            if not _is_at(file, partial):  # it was finished, or swept, before we had the lock
                return None
            try:
                if self._path(part).exists():
                    partial.unlink()
                    return None
                self._reserve(file, part.size_bytes)
                download(file)
                self._finish(file, part)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            fcntl.flock(file, fcntl.LOCK_SH)
            stack.pop_all()
            return file

    def _reserve(self, file: BinaryIO, size_bytes: int) -> None:
        """Make room and take it, removing what was used longest ago and is not in use."""
        with self._locked():
            os.ftruncate(file.fileno(), 0)  # what a killed process left
            files = sorted(self._files(), key=lambda file: file[0].st_atime_ns)
            kept_bytes = sum(status.st_size for status, _ in files)
            room_bytes = self._room_bytes(kept_bytes)
            for status, path in files:
                if size_bytes > room_bytes or kept_bytes + size_bytes <= room_bytes:
                    break
                kept_bytes -= status.st_size if _is_removed(path) else 0
            if kept_bytes + size_bytes > room_bytes:
                raise OSError(errno.ENOSPC, f"no room for {size_bytes} bytes in {room_bytes}")
            os.ftruncate(file.fileno(), size_bytes)  # so that it counts from now on

    def _finish(self, file: BinaryIO, part: Part) -> None:
        # Not synced: after a power cut a file may be zeros, as any file on a bad disk may, and
        # whoever uses one compares its digest.
        file.flush()
        if sha256_of(file) != part.sha256:
            raise OSError(errno.EIO, f"what was downloaded is not {part.path}")
        with self._locked():  # whoever counts must not find it under both names, or under neither
            os.replace(self._path(part).with_suffix(".part"), self._path(part))

    def _room_bytes(self, kept_bytes: int) -> int:
        disk = os.statvfs(self.path)
        return min(self._max_bytes, (kept_bytes + disk.f_bavail * disk.f_frsize) // 2)

    def _files(self) -> list[tuple[os.stat_result, Path]]:
        found = []
        with os.scandir(self.path) as entries:
            for entry in entries:
                if _OURS.fullmatch(entry.name):
                    with suppress(FileNotFoundError):  # discarded a moment ago
                        found.append((entry.stat(), Path(entry)))
        return found

    def _path(self, part: Part) -> Path:
        return self.path / part.sha256

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else counts, makes room or names files inside the block."""
        with (self.path / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def sha256_of(file: BinaryIO) -> str:
    """SHA-256 of a whole file, in hexadecimal; leaves it at its beginning."""
    file.seek(0)
    digest = hashlib.file_digest(cast(io.BufferedReader, file), "sha256").hexdigest()
    file.seek(0)
    return digest


def _is_at(file: BinaryIO, path: Path) -> bool:
    """Whether ``path`` still names the open ``file``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _is_removed(path: Path) -> bool:
    """Remove a file that nobody reads or writes; whether it is gone."""
    try:
        with path.open("r+b") as file:  # writable, without which NFS grants no exclusive lock
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    except FileNotFoundError:
        return True
    except (BlockingIOError, PermissionError):  # in use, or another user's
        return False
    return True
