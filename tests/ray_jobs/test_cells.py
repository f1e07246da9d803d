import json
import logging
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from ray_jobs.cells import open_once, require_seeds, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError
from ray_jobs.image_sets import ImageSetConfig
from ray_jobs.reporting import METRICS_FILE, Row
from ray_jobs.runs import Run, begin
from storage.location import parse_location


class Number(NamedTuple):
    """A cell whose result is its quotient."""

    value: int

    def key(self) -> str:
        return f"number{self.value}"


def divide(shared: int, cell: Number) -> list[Row]:
    return [{"quotient": shared // cell.value}]


def a_run(folder: Path) -> Run:
    state = folder / "out.run"
    this_run = Run(parse_location(folder / "out"), parse_location(state), state, {})
    begin(this_run)
    return this_run


def run_numbers(this_run: Run, *values: int) -> list[int]:
    results = run_cells(
        [Number(value) for value in values],
        divide,
        12,
        cluster=ClusterConfig(),
        this_run=this_run,
        describe=lambda cell, curve: f"12 // {cell.value} = {curve[0]['quotient']}",
    )
    return [curve[0]["quotient"] for curve in results.values()]


def test_finished_cells_come_back_in_order_and_need_no_cluster(tmp_path: Path) -> None:
    this_run = a_run(tmp_path)
    (tmp_path / "out.run" / "cells").mkdir()
    for value in (1, 2):
        path = tmp_path / "out.run" / "cells" / f"number{value}.json"
        path.write_text(json.dumps([{"quotient": 100 + value}]))  # as no division would give
    assert run_numbers(this_run, 2, 1, 2) == [102, 101]


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_failed_cell_is_named_and_those_before_it_are_kept(
    cluster: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    this_run = a_run(tmp_path)
    with (
        caplog.at_level(logging.INFO, logger="ray_jobs"),
        pytest.raises(
            JobError, match=r"^cell number0 failed: ZeroDivisionError: .*; finished ones are kept"
        ),
    ):
        run_numbers(this_run, 3, 0, 4)
    (shown,) = (r.getMessage() for r in caplog.records if r.name == "ray_jobs.cells")
    assert re.fullmatch(r"audit 1/3  eta \d+ \S+  12 // 3 = 4", shown)
    kept = sorted(path.name for path in (tmp_path / "out.run" / "cells").iterdir())
    assert kept == ["number3.json"]
    rows = (tmp_path / "out.run" / METRICS_FILE).read_text().splitlines()
    assert [json.loads(row) for row in rows] == [{"cell": "number3", "curve": [{"quotient": 4}]}]


def test_images_are_opened_once_for_equal_configs_and_again_for_another_size() -> None:
    calls = []

    def open_images(config: ImageSetConfig, *, image_size: int) -> str:
        calls.append((config.source, image_size))
        return f"{config.source} at {image_size}"

    for size in (8, 8, 16):
        config = ImageSetConfig(source="digits:train", classes=[0, "1"])
        assert open_once(open_images, config, image_size=size) == f"digits:train at {size}"
    assert calls == [("digits:train", 8), ("digits:train", 16)]


@pytest.mark.parametrize("seeds", [[], [0, 1, 0]])
def test_seeds_that_repeat_nothing_or_the_same_are_refused(seeds: list[int]) -> None:
    with pytest.raises(ValueError, match=r"seeds is \[.*expected different numbers, at least one"):
        require_seeds(seeds)
