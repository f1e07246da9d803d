"""Reports as they are kept and read again, and the card that is made of one."""

import json
from pathlib import Path

import pytest
import yaml

from ray_jobs.audit_data import AuditData
from ray_jobs.card import Card, run
from ray_jobs.cli import main, parse
from ray_jobs.errors import UsageError
from ray_jobs.reports.reproduction import recipe_yaml, subject
from ray_jobs.reports.stored import commit_report, read_report
from ray_jobs.runs import find_run
from storage.commit import commit, read_manifest, read_part
from storage.errors import NotCommittedError
from tests.ray_jobs.reports.audits import RUN, curve, data_report_of, two_attacks
from tests.ray_jobs.test_audit_data import a_job

PARENTS = {"protected": "/home/somebody/secret/digits/protected", "protected_commit": "0f" * 16}


def store(report: dict[str, object], output: Path, **changes: object) -> str:
    """Commit ``report`` as the audit of `a_job` would."""
    bare = {name: value for name, value in report.items() if name != "run"}
    verb = str(report["format"]).split("-")[0]
    this_run = find_run(a_job("protected", output), verb=f"audit-{verb}")
    return commit_report(this_run, bare, parents=PARENTS, **changes)


@pytest.fixture(scope="module")
def model_audit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store(two_attacks(), tmp_path_factory.mktemp("model-audit"))


@pytest.fixture(scope="module")
def data_audit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return store(data_report(), tmp_path_factory.mktemp("data-audit"), picture=b"\x89PNG")


def data_report() -> dict[str, object]:
    of_one = {"protected": {"none": [curve(0.4)] * 2}, "clean": [curve(0.9)] * 2}
    return data_report_of({"timm/one": of_one})


def test_report_is_committed_as_json_markdown_and_page(model_audit: str) -> None:
    manifest = read_manifest(model_audit)
    assert manifest.kind == "model-audit"
    assert set(manifest.parts) == {"report.json", "report.md", "report.html"}
    report = json.loads(read_part(model_audit, "report.json"))
    assert manifest.description["metrics"] == report["headline"]
    assert manifest.description["parents"] == report["run"]["parents"] == PARENTS
    assert report["run"]["command"] == "audit-model"
    assert set(report["run"]["versions"]) == {
        *("python", "ringfence", "torch", "torchvision", "timm", "ray")
    }
    assert read_part(model_audit, "report.md").startswith(b"The protection did not hold under 1 of")
    assert read_part(model_audit, "report.html").startswith(b"<!doctype html>")
    assert read_report(model_audit).view.outcome == "failed"


def test_page_of_a_data_audit_has_the_picture(data_audit: str) -> None:
    assert b"data:image/png;base64,iVBORw==" in read_part(data_audit, "report.html")
    assert read_manifest(data_audit).kind == "data-audit"


def test_recipe_that_a_report_shows_is_the_one_that_was_run(tmp_path: Path) -> None:
    job = a_job("protected", tmp_path)
    location = store(data_report(), tmp_path)
    shown = tmp_path / "audit-data.yaml"
    shown.write_text(recipe_yaml(read_report(location).report["run"]))
    name, read = parse(["audit-data", "--config", str(shown)])
    assert (name, read) == ("audit-data", job)
    assert isinstance(read, AuditData)


def test_card_of_a_model_says_what_was_measured_and_against_what(model_audit: str) -> None:
    lines = run(Card(model_audit)).splitlines()
    assert lines[0] == "## Protection audit"
    assert lines[2].startswith("`digits/protected` was changed to resist fine-tuning to MNIST.")
    assert lines[4].startswith("> **The protection did not hold under 1 of 2 attacks: the worst,")
    assert lines[16].startswith("Every attack, worst first. Restricted test accuracy in %")
    assert "| Original accuracy | 93.0 % | -2.0 points from 95.0 % unprotected |" in lines
    assert "Not tested: LoRA; whatever is not named here." in lines
    assert "ringfence audit-model --config audit-model.yaml" in lines
    assert f"| protected commit | {'0f' * 16} |" in lines
    assert f"| report commit | {read_manifest(model_audit).commit_id} |" in lines


def test_card_of_a_dataset(data_audit: str) -> None:
    card = run(Card(data_audit))
    assert "`digits/protected` was changed to resist training on its images." in card
    assert "> **The worst case, timm/one, still reaches 40.0 ± 0.0 % on clean test" in card
    assert "| Detectability | 96.0 % |" in card


def test_card_does_not_tell_where_things_are_kept(model_audit: str) -> None:
    card = run(Card(model_audit))
    assert "secret" not in card
    assert model_audit not in card


def test_card_shows_the_worst_of_many(tmp_path: Path) -> None:
    protected = {
        name: [curve(accuracy)] * 2
        for name, accuracy in (
            *(("none", 0.1), ("cutout", 0.2), ("mixup", 0.3)),
            *(("cutmix", 0.4), ("greyscale", 0.5), ("jpeg_10", 0.6)),
        )
    }
    of_one = {"protected": protected, "clean": [curve(0.9)] * 2}
    card = run(Card(store(data_report_of({"timm/one": of_one}), tmp_path)))
    assert "Every appropriator under every countermeasure, worst first (5 of 6 lines)." in card
    assert "| timm/one | jpeg_10 |" in card
    assert "| timm/one | none |" not in card


def test_command_prints_the_card_of_a_location(
    model_audit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["card", model_audit]) == 0
    assert capsys.readouterr().out.startswith("## Protection audit\n")
    assert main(["card"]) == 2
    assert "location" in capsys.readouterr().err


def test_card_of_something_else_is_refused_by_what_it_is(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=r"tiny is a committed model; expected the location of a"):
        run(Card(model))
    with pytest.raises(NotCommittedError, match="nowhere has no MANIFEST"):
        run(Card(str(tmp_path / "nowhere")))
    assert main(["card", model]) == 2
    assert "is a committed model; expected the location of a report" in capsys.readouterr().err


@pytest.mark.parametrize("version", [None, 2])
def test_report_of_another_version_is_refused(version: int | None, tmp_path: Path) -> None:
    old = json.dumps({"headline": {}} if version is None else {"version": version})
    location = str(tmp_path / "old")
    commit(location, {"report.json": old.encode()}, kind="model-audit", description={})
    with pytest.raises(UsageError, match=f"report of version {version}, and .* reads 1; expected"):
        read_report(location)


def test_a_recipe_is_yaml_that_people_read() -> None:
    assert yaml.safe_load(recipe_yaml(RUN)) == RUN["recipe"]
    assert recipe_yaml(RUN).startswith("protected: /home/somebody/runs/digits/protected\n")
    assert subject(RUN) == "digits/protected"
    assert subject({"parents": {"protected": "s3://bucket/protected"}}) == "protected"
