import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs import launch as launching
from ray_jobs.reporting import METRICS_FILE
from ray_jobs.runs import Run
from storage.blobs import open_blobs
from storage.errors import UnavailableError
from storage.location import Location, parse_location


def test_ray_is_given_the_address_that_arrow_understands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = parse_location("s3://bucket/r18?region=eu-west-1&server_side_encryption=aws:kms")
    run = Run(output, output.sibling(".run"), tmp_path, {})
    given: dict[str, Any] = {}
    monkeypatch.setattr(launching, "find_run", lambda *_, **__: run)
    monkeypatch.setattr(launching, "connect", lambda _: None)
    monkeypatch.setattr(launching, "curves_kept", contextlib.nullcontext)
    monkeypatch.setattr(launching, "begin", lambda _: None)
    monkeypatch.setattr(launching, "check_machines", lambda *_: None)
    monkeypatch.setattr(launching, "run_on_workers", lambda *_, **options: given.update(options))
    job = SimpleNamespace(output=str(output), cluster=None, parents=dict)
    committed = launching.launch(
        job,
        verb="pretrain",
        loop=lambda _: {},
        format_row=str,
        step_field="round",
    )
    assert committed == str(output)
    assert given["storage_path"] == "s3://bucket/r18.run?region=eu-west-1"


def test_metrics_of_a_run_on_s3_outlive_the_machine_and_go_on_on_another(
    s3_location: Location, tmp_path: Path
) -> None:
    def on(machine: str) -> Path:
        folder = tmp_path / machine
        folder.mkdir()
        return folder

    state = s3_location.sibling(".run")
    first = Run(s3_location, state, on("first"), {})
    with contextlib.suppress(KeyboardInterrupt), launching.curves_kept(first):
        (first.logs / METRICS_FILE).write_text('{"round": 0}\n')
        raise KeyboardInterrupt
    second = first._replace(logs=on("second"))
    with launching.curves_kept(second), (second.logs / METRICS_FILE).open("a") as file:
        file.write('{"round": 1}\n')
    assert open_blobs(state).get(METRICS_FILE) == b'{"round": 0}\n{"round": 1}\n'


def test_metrics_that_cannot_be_kept_do_not_fail_a_run(
    s3_location: Location, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = Run(s3_location, s3_location.sibling(".run"), tmp_path, {})
    with launching.curves_kept(run):
        monkeypatch.setattr(type(open_blobs(run.state)), "put", unavailable)
    assert f"metrics are in {tmp_path / METRICS_FILE} alone: down" in caplog.text


def unavailable(*_: object) -> None:
    raise UnavailableError("down")


def test_metrics_of_a_local_run_are_written_once(tmp_path: Path) -> None:
    output = parse_location(tmp_path / "model")
    run = Run(output, output.sibling(".run"), tmp_path / "model.run", {})
    with launching.curves_kept(run):
        pass
    assert not list(tmp_path.iterdir())
