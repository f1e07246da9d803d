"""Sizes, times and columns as people read them."""

import math
from collections.abc import Iterable, Sequence

from storage.parallel_parts import Progress


def size_text(num_bytes: int) -> str:
    """Write a size for a person: 512 B, 1.2 MB, 34 GB; a MB is a million bytes."""
    if num_bytes < 1000:
        return f"{num_bytes} B"
    power = min(int(math.log10(num_bytes)) // 3, 4)
    value = num_bytes / 1000**power
    return f"{value:.{1 if value < 10 else 0}f} {('', 'kB', 'MB', 'GB', 'TB')[power]}"


def age_text(seconds: float) -> str:
    """Write how long ago something was: 45 s, 12 min, 26 h, 9 days."""
    for unit, length, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 72)):
        if seconds < most * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def columns(rows: Iterable[Sequence[str]], *, right: int | None = None) -> list[str]:
    """Lines with the cells of ``rows`` below each other, those of column ``right`` flush right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if number == right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def progress_text(progress: Progress) -> str:
    """Write how far the work on parts is."""
    done, total = size_text(progress.bytes_done), size_text(progress.num_bytes)
    return f"{progress.parts_done}/{progress.num_parts} parts  {done} of {total}"
