"""Progress: from the workers to a JSONL file, TensorBoard and the terminal.

Workers report rows; the controller, which runs on the driver's machine, appends them to
`metrics.jsonl` and to TensorBoard; the driver follows that file and prints a line a row. Ray keeps
only metrics that come with a checkpoint, hence the file.
"""

import json
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ray.train.v2.api.callback import UserCallback
from tensorboardX import SummaryWriter

from ray_jobs.terminal import PROGRESS

ROWS: Final = "rows"
NOTICE: Final = "notice"  # a row with this key alone is a message to the user, no round
METRICS_FILE: Final = "metrics.jsonl"
logger = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.2

Row = dict[str, Any]


class RowWriter(UserCallback):
    """Writes the rows that rank 0 reports; Ray Train runs it in the controller's process."""

    def __init__(self, directory: Path, *, step_field: str) -> None:
        """Write into ``directory``; ``step_field`` of a row is TensorBoard's step."""
        self._directory, self._step_field = directory, step_field
        self._board: SummaryWriter | None = None  # opened where it writes: it cannot be pickled

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Append the rows of one report."""
        del run_context, checkpoint
        rows = metrics[0].get(ROWS, [])
        append_rows(self._directory / METRICS_FILE, rows)
        if self._board is None:
            self._board = SummaryWriter(str(self._directory / "tensorboard"))
        for row in rows:
            for name, value in row.items():
                if isinstance(value, float | bool) and math.isfinite(value):
                    self._board.add_scalar(name, float(value), row[self._step_field])
        self._board.flush()


def append_rows(path: Path, rows: list[Row]) -> None:
    """Append ``rows`` as JSON lines; what is not finite becomes null, which JSON has."""
    lines = [
        json.dumps({name: finite_or_null(value) for name, value in row.items()}) for row in rows
    ]
    with path.open("a") as file:
        file.write("".join(f"{line}\n" for line in lines))


def finite_or_null(value: Any) -> Any:
    """``value``, or null where it is a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def following(path: Path, format_row: Callable[[Row], str]) -> Iterator[None]:
    """Log a line for each row that is appended to ``path`` while the body runs."""
    path.touch()
    position = path.stat().st_size  # rows of an earlier attempt were printed by it
    stop = threading.Event()

    def follow() -> None:
        for row in appended_rows(path, position, until=stop.is_set):
            if NOTICE in row:
                logger.info("%s", row[NOTICE])
            else:
                logger.info("%s", format_row(row), extra=PROGRESS)

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def appended_rows(path: Path, position: int, *, until: Callable[[], bool]) -> Iterator[Row]:
    """Yield the rows of ``path`` from byte ``position`` on, as they come, ``until`` says stop.

    Those that are there by then are among them.
    """
    with path.open() as file:
        file.seek(position)
        while True:
            is_last = until()
            yield from map(json.loads, _whole_lines(file))
            if is_last:
                return
            time.sleep(_POLL_SECONDS)


def _whole_lines(file: Any) -> Iterator[str]:
    while True:
        position = file.tell()
        line = file.readline()
        if not line.endswith("\n"):
            file.seek(position)  # half-written: read again when the rest is there
            return
        yield line


def percent(value: float | None) -> str:
    """Write a share for a table: 0.123 as 12.3 %, and a missing one as a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def duration(seconds: float) -> str:
    """Write a duration for a person: 45 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
