import itertools
import os
import re
import subprocess
import sys

import matplotlib as mpl
import pytest

from ray_jobs.reports.figures import accuracy_chart, describe
from ray_jobs.reports.views import Chart, Series
from tests.ray_jobs.conftest import ROOT

CHART = Chart(
    "title",
    "note",
    [
        Series("protected", [0.1, 0.2, 0.3], [[0.1, 0.2, 0.3], [0.1, 0.2]]),
        Series("unprotected", [0.7, 0.8, 0.91], [[0.7, 0.8, 0.91]]),
        Series("scratch", [0.5, 0.6, 0.9], [[0.5, 0.6, 0.9]]),
    ],
)


def draw(chart: Chart = CHART, *, is_large: bool = True) -> str:
    return accuracy_chart(chart, name="chart-0", is_large=is_large)


def test_equal_numbers_give_equal_bytes_in_another_process_too() -> None:
    assert draw() == draw()
    code = (
        "from ray_jobs.reports.figures import accuracy_chart\n"
        "from ray_jobs.reports.views import Chart, Series\n"
        f"for is_large in (True, False): print(accuracy_chart({CHART!r}, name='chart-0', "
        "is_large=is_large))"
    )
    # Sets and dictionaries are ordered otherwise there.
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert other.stdout == f"{draw()}\n{draw(is_large=False)}\n"


def test_lines_differ_without_colour_and_colours_are_the_pages() -> None:
    shown = draw()
    colours = set(re.findall(r"(?:stroke|fill): ([^;\"]+)", shown))
    assert colours <= {
        "none",
        *(f"var(--{name})" for name in ("ink", "muted", "line", "paper")),
        *(f"var(--{name})" for name in ("protected", "reference", "other")),
    }
    dashes = [
        re.findall(rf'style="fill: none;([^"]*)stroke: var\(--{colour}\); stroke-width: 2', shown)
        for colour in ("protected", "reference", "other")
    ]
    assert [len(found) for found in dashes] == [1, 1, 1]
    assert len({found[0] for found in dashes}) == 3
    assert len(set(re.findall(r'xlink:href="#(m\w+)"', shown))) >= 3  # markers, and ticks


def test_text_is_text_and_the_figure_has_a_description() -> None:
    shown = draw()
    for name in ("protected", "unprotected", "scratch", "epoch"):
        assert re.search(rf"<text [^>]*>{name}</text>", shown)
    assert describe(CHART) == (
        "Test accuracy over 3 epochs. After the last: protected 30.0 %, unprotected 91.0 %, "
        "scratch 90.0 %."
    )
    assert f'role="img" aria-label="{describe(CHART)}"' in shown
    assert "protected</text>" not in draw(is_large=False)  # the page has a legend there


def test_names_of_lines_that_end_together_do_not_overlap() -> None:
    together = [Series(name, [0.1, 1.0], [[0.1, 1.0]]) for name in ("protected", "clean")]
    shown = draw(Chart("title", "note", together, chance=0.98))
    heights = {
        name: float(re.search(rf'<text [^>]* y="([\d.]+)"[^>]*>{name}</text>', shown)[1])
        for name in ("protected", "clean", "chance")
    }
    ordered = sorted(heights.values())
    assert min(b - a for a, b in itertools.pairwise(ordered)) > 12  # the font's size
    assert ordered[0] > 0
    assert heights["chance"] == ordered[-1]  # lowest: y counts down


def test_no_setting_of_matplotlib_stays_changed() -> None:
    before = dict(mpl.rcParams)
    draw()
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_one_epoch_at_either_end_is_drawn(accuracy: float) -> None:
    assert "<svg" in draw(Chart("t", "n", [Series("protected", [accuracy], [[accuracy]])]))
