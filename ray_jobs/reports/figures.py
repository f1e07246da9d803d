"""Charts as SVG for a page: accuracy or error over epochs, the same bytes for the same numbers.

Lines differ in dash and marker, not in colour alone. Colours are variables of the page, so a chart
is dark where the page is; text stays text, so it is read, searched and set in the page's font.
"""

import io
import re
from typing import Any, Final, NamedTuple

import matplotlib as mpl
import numpy as np
from markupsafe import escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from scipy.optimize import isotonic_regression

from ray_jobs.reports.views import Chart

# Matplotlib knows no variables: it draws in colours that stand for them.
_VARIABLES: Final = {
    "ink": "#010203",
    "muted": "#020304",
    "line": "#030405",
    "paper": "#040506",
    "protected": "#050607",
    "reference": "#060708",
    "other": "#070809",
}


class Style(NamedTuple):
    """How the line of one start is drawn."""

    colour: str
    """Of the page's variables."""
    dashes: str
    marker: str


STYLES: Final = {
    "protected": Style("protected", "-", "o"),
    "scratch": Style("reference", "--", "s"),
    "clean": Style("reference", "--", "s"),
    "unprotected": Style("other", ":", "^"),
    "chance": Style("muted", ":", ""),
}
_SETTINGS: Final[dict[str, Any]] = {
    "svg.fonttype": "none",
    "axes.edgecolor": _VARIABLES["muted"],
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.labelcolor": _VARIABLES["muted"],
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.color": _VARIABLES["line"],
    "grid.linewidth": 0.7,
    "xtick.color": _VARIABLES["muted"],
    "ytick.color": _VARIABLES["muted"],
    "ytick.major.size": 0,
}
# In pixels, as the page shows them on a phone: text of 11 there is 14 on a desktop.
_LARGE: Final = (460, 290)
_SMALL: Final = (270, 180)
_MOST_MARKERS: Final = 8
# Between the labels of two lines, as a share of the axis.
_LABEL_GAP: Final = 0.075


def accuracy_chart(chart: Chart, *, name: str, is_large: bool) -> str:
    """Return ``chart`` as an ``<svg>`` element.

    Args:
        chart: its title and note are left to the page.
        name: no other chart's on the page.
        is_large: with the names of the lines at their ends; else for a page that has a legend.
    """
    width, height = _LARGE if is_large else _SMALL
    settings: Any = {**_SETTINGS, "svg.hashsalt": name, "font.size": 12 if is_large else 10}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.subplots()
        _draw(axes, chart, is_large=is_large)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_page(file.getvalue(), label=describe(chart))


def describe(chart: Chart) -> str:
    """Say in words what a chart shows, for who cannot see it."""
    ends = ", ".join(
        f"{series.name} {series.mean[-1]:.3f}"
        if chart.is_error
        else f"{series.name} {100 * series.mean[-1]:.1f} %"
        for series in chart.series
    )
    epochs = max(len(series.mean) for series in chart.series)
    measured = "Mean squared error" if chart.is_error else "Test accuracy"
    return f"{measured} over {epochs} epochs. After the last: {ends}."


def _draw(axes: Axes, chart: Chart, *, is_large: bool) -> None:
    for series in chart.series:
        style = STYLES[series.name]
        colour = _VARIABLES[style.colour]
        for seed in series.seeds:
            axes.plot(range(1, len(seed) + 1), seed, color=colour, linewidth=0.8, alpha=0.35)
        axes.plot(
            range(1, len(series.mean) + 1),
            series.mean,
            color=colour,
            linestyle=style.dashes,
            linewidth=2.2 if is_large else 1.8,
            marker=style.marker,
            markevery=max(1, -(-len(series.mean) // _MOST_MARKERS)),
            markersize=5.5 if is_large else 4.5,
            markerfacecolor=_VARIABLES["paper"],
        )
    if chart.chance is not None:
        style = STYLES["chance"]
        axes.axhline(
            chart.chance, color=_VARIABLES[style.colour], linestyle=style.dashes, linewidth=1.2
        )
    highest = max(max(map(max, series.seeds)) for series in chart.series)
    axes.set_ylim(0, (1.08 * highest if chart.is_error else min(1.0, 1.08 * highest)) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    if not chart.is_error:
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=" %"))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("epoch")
    axes.margins(x=0.03)
    if is_large:
        _label_lines(axes, chart)


def _label_lines(axes: Axes, chart: Chart) -> None:
    """Write the name of every line where it ends, pushed apart where they end together."""
    top = axes.get_ylim()[1]
    ends = {series.name: series.mean[-1] for series in chart.series}
    if chart.chance is not None:
        ends["chance"] = chart.chance
    names = sorted(ends, key=lambda name: ends[name])
    # As near to the ends as leaves a gap between neighbours, and inside the axis.
    gaps = _LABEL_GAP * top * np.arange(len(names))
    heights = isotonic_regression([ends[name] for name in names] - gaps).x
    heights = np.clip(heights, 0, top - gaps[-1]) + gaps
    for name, height in zip(names, heights, strict=True):
        axes.annotate(
            name,
            (1, height),
            xycoords=("axes fraction", "data"),
            xytext=(5, 0),
            textcoords="offset points",
            color=_VARIABLES[STYLES[name].colour],
            verticalalignment="center",
        )


def _for_page(svg: str, *, label: str) -> str:
    """The bare element: sized by the page, named for a screen reader, coloured by variables."""
    svg = svg[svg.index("<svg") :]
    referenced = set(re.findall(r'(?:url\(|href=")#([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in referenced else "", svg)
    # The page has its own font, and a style element here would hold for all of it.
    svg = re.sub(
        r"font-family: [^;]*; |<defs>\s*<style.*?</style>\s*</defs>\s*", "", svg, flags=re.S
    )
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)  # no screen shows thousandths of a pixel
    for name, colour in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    opening = f'<svg {view_box[0]} role="img" aria-label="{escape(label)}">'
    return re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1).strip()
