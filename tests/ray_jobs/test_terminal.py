"""Lines as they look on a terminal of any width, and in a log file."""

import io
import logging
import math
import re

import pytest

from protection.audit.threat_models import THREAT_MODELS, attacks_of
from ray_jobs import pretrain, protect_data, protect_model
from ray_jobs.attack_cells import Cell, Target, show_progress
from ray_jobs.terminal import PROGRESS, Formatter, failure, is_coloured, shortened

ROUND = {
    "round_index": 799,
    "num_rounds": 800,
    "original_accuracy": 1.0,
    "original_drop": 0.1,
    "query_loss": 12.345,
    "finetuned_accuracy": 1.0,
    "is_rolled_back": False,
    "seconds": 99.9,
    "eta_seconds": 3720,
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, message: str, *, level: int = logging.INFO, **extra: bool) -> str:
    record = logging.LogRecord("ray_jobs", level, "", 0, message, None, None)
    record.__dict__.update(extra)
    return Formatter(stream).format(record)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)


LINES = [
    protect_model.format_row(ROUND),
    protect_model.format_row({**ROUND, "is_rolled_back": True}),
    protect_model.format_row({**ROUND, "query_loss": None, "finetuned_accuracy": None}),
    pretrain.format_row(
        {**ROUND, "epoch": 119, "num_rounds": 120, "loss": 12.345, "validation_accuracy": 1.0}
    ),
    protect_data.format_row(
        {**ROUND, "blocks_done": 50, "num_blocks": 50, "images_done": 50_000, "psnr": 42.3}
    ),
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.split("/")[0])
def test_progress_fits_80_columns_behind_the_time_in_a_log_file(line: str) -> None:
    assert len(shown(io.StringIO(), line, **PROGRESS)) <= 80


def test_a_round_that_was_rolled_back_says_so() -> None:
    assert "rolled back" in LINES[1]
    assert "rolled back" not in LINES[0]


def test_attacks_of_the_short_threat_model_are_told_apart_at_80_columns() -> None:
    curve = [{"test_accuracy": 1 / math.pi}]
    target = Target("restricted", 0)
    cells = [
        Cell(target, attack, start, 0)
        for attack in attacks_of(THREAT_MODELS["short"])
        for start in ("protected", "unprotected")
    ]
    lines = {
        shortened(f"audit 28/33  eta 16 s  {show_progress(cell, curve)}", 80) for cell in cells
    }
    assert len(lines) == len(cells)
    assert max(map(len, lines)) <= 80


def test_log_file_has_the_whole_line_behind_the_time(narrow: None) -> None:
    line = "audit 1/3  " + 10 * "name "
    assert re.fullmatch(r"\d\d:\d\d " + line, shown(io.StringIO(), line, **PROGRESS))
    assert shown(io.StringIO(), "starting Ray") == "starting Ray"


def test_terminal_shows_both_ends_of_a_long_line(narrow: None) -> None:
    line = "audit 1/3  " + 60 * "x" + " after prune"
    plain = re.sub(r"\x1b\[\d*m", "", shown(Terminal(), line, **PROGRESS))
    assert len(plain) == 40
    assert plain.startswith("audit 1/3  xxx")
    assert plain.endswith("er prune")


def test_nothing_but_progress_is_cut(narrow: None) -> None:
    table = "| a | b |\n" * 20
    assert shown(Terminal(), table) == table


@pytest.mark.parametrize(
    ("stream", "environment", "expected"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"NO_COLOR": ""}, True),  # as no-color.org has it
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colours_are_for_terminals_whose_user_wants_them(
    stream: io.StringIO,
    environment: dict[str, str],
    expected: bool,
    narrow: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_coloured(stream) is expected
    texts = [
        shown(stream, "sep 1/2 blocks", **PROGRESS),
        shown(stream, "careful", level=logging.WARNING),
        failure("ringfence ls", "no", stream),
    ]
    assert all(("\x1b[" in text) is expected for text in texts), texts
