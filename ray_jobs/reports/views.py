"""What a reader is shown of a report, whatever it is of and wherever it is shown.

A model audit and a data audit become the same few pieces; Markdown, the page and the card each
write these. Everything is text already: numbers are rounded in one place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

NUM_CHARTS: Final = 7
"""The worst, and as many again as fill two rows; more would repeat the table."""
Outcome = Literal["held", "failed", "open"]
"""Open: measured, and for the reader to judge."""


class Score(NamedTuple):
    """One number that counts."""

    name: str
    value: str
    unit: str
    note: str
    """What it is compared with, or of."""


class Line(NamedTuple):
    """One line of a table."""

    values: Sequence[str]
    is_bad: bool = False
    """Whether the protection failed here."""


class Table(NamedTuple):
    """Numbers in lines, the worst first."""

    title: str
    note: str
    """What the numbers are, and over what."""
    columns: Sequence[str]
    num_names: int
    """Columns that name what the others measure; they come first."""
    lines: Sequence[Line]


class HeatCell(NamedTuple):
    """One number of a heat map."""

    text: str
    level: int
    """From 0, where the protection is strongest, to 5."""


class HeatMap(NamedTuple):
    """One number for each pair of two names; the longer list goes down."""

    title: str
    note: str
    row_name: str
    column_name: str
    columns: Sequence[str]
    rows: Mapping[str, Sequence[HeatCell | None]]


class Series(NamedTuple):
    """One line of a chart, and its seeds."""

    name: str
    mean: Sequence[float]
    seeds: Sequence[Sequence[float]]


class Chart(NamedTuple):
    """Accuracy over epochs, or a denoiser's error."""

    title: str
    note: str
    series: Sequence[Series]
    chance: float | None = None
    is_error: bool = False
    """Whether the numbers are mean squared errors, which are no shares."""


class View(NamedTuple):
    """All that is shown of one report."""

    kind: str
    """What it is, as a title: Model audit."""
    verdict: str
    """One sentence that names the worst case."""
    outcome: Outcome
    purpose: str
    """What the protection is to prevent."""
    scope: str
    """What was audited, against whom: the verdict says nothing beyond it."""
    scores: Sequence[Score]
    tables: Sequence[Table]
    """The first is of every cell."""
    heat_maps: Sequence[HeatMap]
    charts: Sequence[Chart]
    """The first is of the worst cell."""
    lines: Mapping[str, str]
    """What the lines of the charts are, by name."""
    not_tested: Sequence[str]
    terms: Mapping[str, str]
    """What the words mean that the others use."""
    picture_title: str = "What protected images look like"
    picture_words: str = (
        "Some clean images, the same images protected below them, and below these the difference, "
        "amplified."
    )
    """What a picture shows, for who cannot see it."""


def chart_series(
    starts: Mapping[str, Any], *, shown: Callable[[float], float] = lambda accuracy: accuracy
) -> list[Series]:
    """The curves of a cell, by the name of what they started from, as a report holds them.

    ``shown`` is what is drawn of an accuracy.
    """
    return [
        Series(
            name,
            [shown(accuracy) for accuracy in of_start["curve"]["mean"]],
            [[shown(row["test_accuracy"]) for row in rows] for rows in of_start["curve"]["seeds"]],
        )
        for name, of_start in starts.items()
    ]
