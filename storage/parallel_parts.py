"""Many parts at once: a bounded number of threads, and progress to tell.

Guarantee: when a part fails, or the caller stops listening, no further part is begun.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Final, NamedTuple, TypeAlias

from storage.blobs import BlobStore
from storage.location import Location
from storage.manifest import Part
from storage.parts import require_match

Count: TypeAlias = Callable[[int], None]
"""Told of every byte that some work on a part is done with."""

# Several, because one connection to S3 is far from what a machine can take.
_THREADS: Final = 4
# One request on S3: large enough to stream at full speed, small enough for any machine.
_CHUNK_BYTES: Final = 8 * 2**20
_REPORT_SECONDS: Final = 5.0


class Progress(NamedTuple):
    """How far the work on some parts is."""

    parts_done: int
    num_parts: int
    bytes_done: int
    num_bytes: int


class _StoppedError(Exception):
    """Ends work that nobody waits for any more."""


def each_part(
    parts: Mapping[str, Part], work: Callable[[str, Part, Count], None]
) -> Iterator[Progress]:
    """Call ``work`` for each of ``parts``; yield every few seconds, and when all are done.

    Args:
        parts: by name; of names that stand for the same blob, one is worked on.
        work: gets a name, its part, and what it has to tell of its progress.

    Raises:
        Exception: what ``work`` raised first.
    """
    blobs = {part.path: (name, part) for name, part in parts.items()}
    num_bytes = sum(part.size_bytes for _, part in blobs.values())
    bytes_done, stop, lock = 0, threading.Event(), threading.Lock()

    def count(num_bytes: int) -> None:
        nonlocal bytes_done
        if stop.is_set():
            raise _StoppedError
        with lock:
            bytes_done += num_bytes

    with ThreadPoolExecutor(_THREADS) as pool:
        pending = {pool.submit(work, name, part, count) for name, part in blobs.values()}
        try:
            while True:
                done, pending = wait(pending, _REPORT_SECONDS, FIRST_EXCEPTION)
                for future in done:
                    future.result()
                yield Progress(len(blobs) - len(pending), len(blobs), bytes_done, num_bytes)
                if not pending:
                    return
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)


def read_through(part: Part, *, location: Location, blobs: BlobStore, count: Count) -> None:
    """Check ``part`` among the ``blobs`` of ``location`` without holding it in memory.

    Raises:
        DigestMismatchError: the stored bytes are not those that were committed.
        BlobMissingError: there is no such blob.
    """
    sha256, size_bytes = hashlib.sha256(), 0
    with blobs.open(part.path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha256.update(chunk)
            size_bytes += len(chunk)
            count(len(chunk))
    require_match(location, part, size_bytes, sha256.hexdigest())
