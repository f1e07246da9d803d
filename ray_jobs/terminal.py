"""How messages look: on a terminal at any width, and in a log file.

A line of progress fits 80 columns, its numbers come first and always at the same place, and what is
of any length, such as an attack's name, comes last. A terminal shows as much of it as one line
holds; a log file has all of it, behind the time of day.
"""

import logging
import os
import shutil
import time
from typing import Any, Final, TextIO

PROGRESS: Final[dict[str, Any]] = {"is_progress": True}
"""``extra`` of a log record that is a line of progress."""

_RED: Final = "31"
_YELLOW: Final = "33"
_BOLD: Final = "1"
# Of a line that is cut in its middle: the end of an attack's name often tells it from others.
_KEPT_TAIL: Final = 16


class Formatter(logging.Formatter):
    """Cuts lines of progress to a terminal's width, or puts the time in front of them."""

    def __init__(self, stream: TextIO) -> None:
        """Format for ``stream``."""
        super().__init__()
        self._is_terminal, self._is_coloured = stream.isatty(), is_coloured(stream)

    def format(self, record: logging.LogRecord) -> str:
        """Return the message as the stream shows it."""
        line = super().format(record)
        if not getattr(record, "is_progress", False):
            is_warning = self._is_coloured and record.levelno >= logging.WARNING
            return painted(line, _YELLOW) if is_warning else line
        if not self._is_terminal:
            return f"{time.strftime('%H:%M', time.localtime(record.created))} {line}"
        line = shortened(line, shutil.get_terminal_size().columns)
        if not self._is_coloured:
            return line
        word, space, rest = line.partition(" ")
        return f"{painted(word, _BOLD)}{space}{rest}"


def configure(stream: TextIO) -> None:
    """Show what the jobs have to say on ``stream``, and of everybody else the warnings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Formatter(stream))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ray_jobs").setLevel(logging.INFO)


def is_coloured(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal whose user does not object to colours.

    Source: https://no-color.org
    """
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(text: str, code: str) -> str:
    """``text`` in the colour of an ANSI ``code``."""
    return f"\x1b[{code}m{text}\x1b[0m"


def failure(command: str, message: object, stream: TextIO) -> str:
    """Return what is said where a command ends without a result."""
    return f"{painted(command, _RED) if is_coloured(stream) else command}: {message}"


def shortened(line: str, width: int) -> str:
    """``line`` without a part of its middle, if it is wider than ``width``."""
    if len(line) <= width:
        return line
    tail = min(_KEPT_TAIL, width // 4)
    return f"{line[: width - tail - 1]}…{line[len(line) - tail :]}"
