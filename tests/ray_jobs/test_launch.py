from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ray_jobs import launch as launching
from ray_jobs.runs import Run
from storage.location import parse_location


def test_ray_is_given_the_address_that_arrow_understands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = parse_location("s3://bucket/r18?region=eu-west-1&server_side_encryption=aws:kms")
    run = Run(output, output.sibling(".run"), tmp_path, {})
    given: dict[str, Any] = {}
    monkeypatch.setattr(launching, "find_run", lambda *_, **__: run)
    monkeypatch.setattr(launching, "connect", lambda _: None)
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
