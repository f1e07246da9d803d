"""The pictures of a sweep, as SVG that a page holds in itself."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from ray_jobs.sweep_records import Trial

_BLUE: Final = "#2563a8"
_GREY: Final = "#b4bac2"
_INK: Final = "#333a44"
# Typed loosely: matplotlib's own type lists every setting it has.
_STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "ringfence",  # the same trials give the same bytes
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def trade_chart(
    trials: Sequence[Trial], best: Sequence[Trial], *, x: str, y: str, limit: float
) -> str:
    """Two metrics, in per cent, against each other; the ``best`` joined, ``limit`` of ``x`` marked.

    Args:
        trials: measured ones.
        best: the Pareto set, in order of ``x``.
        x: metric to the right.
        y: metric upward.
        limit: of ``x``, a share.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(5.2, 3.2)
        colours = [_BLUE if trial in best else _GREY for trial in trials]
        axes.axvline(100 * limit, color=_GREY, linewidth=1, linestyle=":")
        axes.plot(_percents(best, x), _percents(best, y), color=_BLUE, linewidth=1, alpha=0.5)
        axes.scatter(_percents(trials, x), _percents(trials, y), c=colours, s=22, zorder=3)
        axes.set_xlabel(f"{x}, points")
        axes.set_ylabel(f"{y}, points")
        return _svg(figure)


def slice_chart(trials: Sequence[Trial], field: str, metric: str, *, is_logarithmic: bool) -> str:
    """One metric, in per cent, over one field."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(2.6, 2.0)
        values = [trial.fields[field] for trial in trials]
        heights = _percents(trials, metric)
        if _is_numeric(values):
            axes.scatter(values, heights, c=_BLUE, s=12)
            if is_logarithmic:
                axes.set_xscale("log")
        else:
            names = sorted({str(value) for value in values})
            axes.scatter([names.index(str(value)) for value in values], heights, c=_BLUE, s=12)
            axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
            axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_title(field, fontsize=9, color=_INK, loc="left")
        return _svg(figure)


def importance_chart(importance: Mapping[str, float]) -> str:
    """Bars, the longest on top."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(5.2, 0.5 + 0.28 * len(importance))
        names = list(importance)[::-1]
        axes.barh(names, [importance[name] for name in names], color=_BLUE, height=0.55)
        axes.set_xlim(0, 1)
        return _svg(figure)


def field_importance(trials: Sequence[Trial]) -> dict[str, float]:
    """How much each field orders the scores, in [0, 1], the most first; needs three trials.

    Spearman's rank correlation, without sign, where values are numbers; else the share of the
    ranks' spread that lies between categories, as its root. Neither knows of fields that matter
    only together.
    """
    if len(trials) < 3:
        return {}
    ranks = stats.rankdata([trial.score for trial in trials])
    if np.ptp(ranks) == 0:
        return {}
    found = {}
    for field in trials[0].fields:
        values = [trial.fields[field] for trial in trials]
        if len({str(value) for value in values}) == 1:
            found[field] = 0.0
        elif _is_numeric(values):
            found[field] = abs(float(stats.spearmanr(values, ranks).statistic))
        else:
            found[field] = _correlation_ratio([str(value) for value in values], ranks)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _correlation_ratio(categories: Sequence[str], ranks: Any) -> float:
    of_category = np.array(
        [
            np.mean([r for c, r in zip(categories, ranks, strict=True) if c == own])
            for own in categories
        ]
    )
    return float(np.sqrt(np.var(of_category) / np.var(ranks)))


def _is_numeric(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _percents(trials: Sequence[Trial], metric: str) -> list[float]:
    return [100 * trial.metrics[metric] for trial in trials]


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]  # a page has a head of its own
