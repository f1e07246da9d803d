"""Heat maps of a report: a stronger colour is worse, and every cell has its number."""

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from protection.audit.countermeasures import COUNTERMEASURES
from ray_jobs.reports.views import HeatCell, HeatMap
from ray_jobs.reports.wording import points

# Gain above which a cell is of the next level. The same in every report, so that two compare.
_GAIN_STEPS: Final = (0, 0.02, 0.05, 0.10, 0.20)
_NUM_LEVELS: Final = 5
_COLUMN_FACTS: Final = ("optimizer", "finetune_lr")
# Facts whose value says what it is; others are written with their name.
_PLAIN_FACTS: Final = ("method", "preparation", *_COLUMN_FACTS)


def gain_maps(cells: Sequence[Mapping[str, Any]]) -> list[HeatMap]:
    """Transfer gain of a model audit's cells, a map a domain; none where a list says as much.

    What differs beside optimizer and learning rate is the other side of a map. Where cells have
    one place, it shows the worst of them.
    """
    domains = list(dict.fromkeys(cell["domain"] for cell in cells))
    return [
        shown
        for domain in domains
        for shown in _arrange(
            _gains([cell for cell in cells if cell["domain"] == domain]),
            title="Transfer gain by kind of attack" + (f", {domain}" if len(domains) > 1 else ""),
            note="Points above training from scratch. Pale: held; a stronger colour above 0, 2, 5, "
            "10, 20.",
            row_name="what is trained",
            column_name="optimizer, learning rate",
        )
    ]


def _gains(cells: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], HeatCell]:
    facts = [cell["facts"] for cell in cells]
    names = dict.fromkeys(name for each in facts for name in each if name not in _COLUMN_FACTS)
    # What only some methods have says something where those differ in it.
    values = {name: {repr(each.get(name)) for each in facts} - {"None"} for name in names}
    varying = [name for name in names if len(values[name]) > 1]
    gains: dict[tuple[str, str], float] = {}
    for cell in sorted(cells, key=lambda cell: _order(cell["facts"])):
        place = _words(cell["facts"], varying), _words(cell["facts"], _COLUMN_FACTS)
        gains[place] = max(cell["transfer_gain"]["mean"], gains.get(place, -math.inf))
    return {
        place: HeatCell(points(gain, sign="+"), bisect.bisect_left(_GAIN_STEPS, gain))
        for place, gain in gains.items()
    }


def _order(facts: Mapping[str, Any]) -> tuple[str, str, float]:
    rate = facts.get("finetune_lr")
    return (
        str(facts.get("method")),
        str(facts.get("optimizer")),
        rate if isinstance(rate, int | float) else 0.0,
    )


def _words(facts: Mapping[str, Any], names: Iterable[str]) -> str:
    """The facts of ``names`` as a heading; what is not there, or not done, is left out."""
    words = []
    for name in names:
        value = facts.get(name)
        if value in (None, "none"):
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        words.append(text if name in _PLAIN_FACTS else f"{name.replace('_', ' ')} {text}")
    return ", ".join(words) or "all"


def accuracy_maps(report: Mapping[str, Any]) -> list[HeatMap]:
    """Accuracy left of a data audit's cells: one map, or none where a list says as much."""
    chance = report["headline"]["chance"]
    order = {name: number for number, name in enumerate(COUNTERMEASURES)}
    shown = {}
    for cell in sorted(report["cells"], key=lambda cell: order.get(cell["countermeasure"], -1)):
        left = cell["protected"]["peak"]["mean"]
        clean = report["clean"][cell["appropriator"]]["peak"]["mean"]
        share = (left - chance) / (clean - chance) if clean > chance else 1.0
        level = min(max(math.ceil(_NUM_LEVELS * share), 0), _NUM_LEVELS)
        shown[cell["countermeasure"], cell["appropriator"]] = HeatCell(points(left), level)
    return _arrange(
        shown,
        title="Accuracy left by appropriator and countermeasure",
        note="Peak accuracy in %. A stronger colour for every fifth of the way from chance to what "
        "clean images teach.",
        row_name="countermeasure",
        column_name="appropriator",
    )


def _arrange(
    cells: Mapping[tuple[str, str], HeatCell],
    *,
    title: str,
    note: str,
    row_name: str,
    column_name: str,
) -> list[HeatMap]:
    """A map of ``cells`` by row and column with the longer side down: a phone is narrow."""
    rows, columns = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    if min(len(rows), len(columns)) < 2:
        return []
    if len(columns) > len(rows):
        rows, columns, row_name, column_name = columns, rows, column_name, row_name
        cells = {(second, first): cell for (first, second), cell in cells.items()}
    by_row = {row: [cells.get((row, column)) for column in columns] for row in rows}
    return [HeatMap(title, note, row_name, column_name, columns, by_row)]
