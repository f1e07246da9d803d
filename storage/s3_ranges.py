"""A blob as a file of which only those bytes are fetched that are read."""

import io
from collections.abc import Callable


class RangedReader(io.RawIOBase):
    """A seekable file whose every read is one call of ``fetch_range(start, stop)``."""

    def __init__(self, fetch_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        """Read a blob of ``size_bytes``."""
        super().__init__()
        self._fetch_range = fetch_range
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def tell(self) -> int:
        """Position of the next byte."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move without fetching anything."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, start[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Fetch the next ``size`` bytes, fewer only at the end; a negative size is all the rest."""
        stop = self._size_bytes
        if size is not None and size >= 0:
            stop = min(stop, self._position + size)
        if stop <= self._position:
            return b""
        data = self._fetch_range(self._position, stop)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        """Fetch all the rest."""
        return self.read()
