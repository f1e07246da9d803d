"""Looking after what is kept, as a person types it: ls, verify, copy and clean."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ray_jobs import clean as clean_module
from ray_jobs.cli import main
from ray_jobs.pretrain import Pretrain
from ray_jobs.reporting import METRICS_FILE
from ray_jobs.runs import begin, find_run
from ray_jobs.tables import age_text, columns, size_text
from storage import leftovers as leftovers_module
from storage.blobs import open_blobs
from storage.commit import commit, read_manifest, stage
from storage.location import Location
from storage.manifest import MANIFEST_NAME, Manifest
from storage.training_state import commit_training_state
from tests.ray_jobs.conftest import ORIGINAL, TINY
from tests.storage.image_files import parquet_bytes, to_bytes

NAMES = ("deep/", "model", "next ", "torn ")
Says = Callable[..., tuple[str, str]]


def publish(location: Location, *, kind: str = "model") -> Manifest:
    parts = {"model.safetensors": bytes(1500), "report.md": b"it held"}
    return commit(location, parts, kind=kind, description={})


def begin_run(location: Location) -> None:
    begin(find_run(Pretrain(model=TINY, original=ORIGINAL, output=str(location)), verb="pretrain"))


@pytest.fixture
def says(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Says:
    """Runs the command, checks its exit code and gives what it says: the result, and progress."""

    def run(code: int, *arguments: object) -> tuple[str, str]:
        caplog.clear()
        assert main([str(argument) for argument in arguments]) == code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        told = [r.getMessage() for r in caplog.records if r.name.startswith("ray_jobs")]
        return out, "\n".join([*told, err])

    return run


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs of a run on S3 are kept in the working directory."""
    monkeypatch.chdir(tmp_path)


def test_ls_shows_a_line_for_each_commit_and_unfinished_run(location: Location, says: Says) -> None:
    manifest = publish(location / "deep" / "protected", kind="dataset")
    publish(location / "model")
    begin_run(location / "next")
    stage(location / "next", "checkpoint.bin", bytes(2_000_000))
    open_blobs(location).put(f"torn/{MANIFEST_NAME}", b"{")
    out, err = says(0, "ls", location)
    rows = [line.split(maxsplit=5) for line in out.splitlines()]
    assert err.strip() == ""
    assert [(row[0], *row[3:]) for row in rows] == [
        ("dataset", "1.5", "kB", "deep/protected"),
        ("model", "1.5", "kB", "model"),
        ("unfinished", "2.0", "MB", rows[2][5]),
        ("unreadable", "1", "B", rows[3][5]),
    ]
    assert rows[0][1:3] == [manifest.created[:10], manifest.created[11:16]]
    assert rows[2][5].startswith("next")
    assert "(pretrain, last active " in rows[2][5]
    assert "is not JSON" in rows[3][5]
    assert len({line.rindex(name) for line, name in zip(out.splitlines(), NAMES, strict=True)}) == 1


def test_ls_for_programs(location: Location, says: Says) -> None:
    manifest = publish(location)
    out, _ = says(0, "ls", "--json", location)  # a switch takes no value
    assert json.loads(out) == [
        {
            "location": str(location),
            "kind": "model",
            "created": manifest.created,
            "size_bytes": 1507,
            "commit_id": manifest.commit_id,
            "note": None,
        }
    ]
    assert says(0, "ls", location, "--json", "false")[0].split()[-1] == "."


def test_ls_where_nothing_is_committed(location: Location, says: Says) -> None:
    _, err = says(2, "ls", location)
    assert f"ringfence ls: {location} holds nothing; expected" in err
    open_blobs(location).put("cat.png", b"")
    out, err = says(0, "ls", location)
    assert out == ""
    assert f"nothing is committed, and nothing was begun, at or below {location}" in err
    assert says(0, "ls", location, "--json")[0] == "[]\n"


def test_checkpoints_of_a_run_are_no_commits_of_the_user(
    tmp_path_location: Location, says: Says
) -> None:
    begin_run(tmp_path_location / "next")
    state = tmp_path_location / "next.run" / "train" / "round-000001-try-1"
    commit_training_state(state, {"round": 1})
    publish(tmp_path_location / "next.run" / "trial")
    out, _ = says(0, "ls", tmp_path_location)
    assert [line.split()[0] for line in out.splitlines()] == ["unfinished", "model"]
    assert says(0, "ls", state)[0].startswith("training-state")  # asked for by its name


def test_finished_run_is_no_longer_unfinished(tmp_path_location: Location, says: Says) -> None:
    begin_run(tmp_path_location / "model")
    assert says(0, "ls", tmp_path_location / "model.run")[0].startswith("unfinished")
    publish(tmp_path_location / "model")
    for place in (tmp_path_location / "model", tmp_path_location / "model.run"):
        out, _ = says(0, "ls", place)
        assert len(out.splitlines()) == 1
        assert out.startswith("model ")


def test_verify_checks_the_bytes_of_anything(location: Location, says: Says) -> None:
    manifest = publish(location)
    out, err = says(0, "verify", location)
    assert json.loads(out) == {
        "location": str(location),
        "kind": "model",
        "commit_id": manifest.commit_id,
        "num_parts": 2,
        "size_bytes": 1507,
    }
    assert "verify 2/2 parts  1.5 kB of 1.5 kB" in err


def test_verify_names_every_damaged_part(location: Location, says: Says) -> None:
    parts = publish(location).parts
    blobs = open_blobs(location)
    blobs.put(parts["model.safetensors"].path, b"other weights")
    blobs.delete(parts["report.md"].path)
    out, err = says(1, "verify", location)
    assert out == ""
    assert "has 2 parts of 2 that are not what was committed" in err
    assert parts["model.safetensors"].path in err
    assert "has 13 bytes with SHA-256" in err
    assert f"{parts['report.md'].path}" in err
    assert "does not exist" in err


@pytest.fixture
def protected(tmp_path: Path) -> str:
    """Location of a protected dataset whose clean images are gone."""
    images = [to_bytes(Image.new("RGB", (4, 4), (value, 0, 0))) for value in range(4)]
    data = parquet_bytes(images, [0, 1, 0, 1], class_names=["a", "b"])
    recipe = {"command": "protect-data", "dataset": {"source": str(tmp_path / "gone.parquet")}}
    commit(
        tmp_path / "protected",
        {"data-00000.parquet": data},
        kind="dataset",
        description={"recipe": recipe, "budget": {"epsilon_levels": 2}},
    )
    (tmp_path / "clean.parquet").write_bytes(data)
    return str(tmp_path / "protected")


def test_verify_without_the_clean_images_checks_the_bytes(
    protected: str, tmp_path: Path, says: Says
) -> None:
    _, err = says(2, "verify", protected)
    assert "gone.parquet" in err
    assert "--digests_only still checks what is stored" in err
    found = json.loads(says(0, "verify", protected, "--digests_only")[0])
    assert found["num_parts"] == 1
    assert "max_change_levels" not in found
    clean = ["--clean.source", tmp_path / "clean.parquet"]
    found = json.loads(says(0, "verify", protected, *clean)[0])
    assert (found["max_change_levels"], found["epsilon_levels"], found["num_parts"]) == (0, 2, 1)


@pytest.mark.parametrize("options", [["--epsilon_levels", "2"], ["--clean.source", "x"]])
def test_verify_refuses_what_it_would_ignore(
    options: list[str], protected: str, says: Says
) -> None:
    _, err = says(2, "verify", protected, "--digests_only", *options)
    assert "digests_only is true, but clean or epsilon_levels is given" in err


def test_verify_of_a_model_takes_no_images(tmp_path_location: Location, says: Says) -> None:
    publish(tmp_path_location)
    _, err = says(2, "verify", tmp_path_location, "--epsilon_levels", "2")
    assert "is a committed model; expected the location of a dataset" in err


def test_copy_prints_the_copy_and_says_when_it_is_there(location: Location, says: Says) -> None:
    manifest = publish(location / "model")
    out, err = says(0, "copy", location / "model", location / "copy")
    assert out == f"{location / 'copy'}\n"
    assert "copy 2/2 parts  1.5 kB of 1.5 kB" in err
    assert read_manifest(location / "copy") == manifest
    out, err = says(0, "copy", location / "model", location / "copy")
    assert out == f"{location / 'copy'}\n"
    assert "is there already, whole: the same commit" in err
    publish(location / "other")
    _, err = says(2, "copy", location / "model", location / "other")
    assert "it is not that of" in err
    _, err = says(2, "copy", location / "nothing", location / "new")
    assert "has no MANIFEST.json" in err


def test_copy_of_something_damaged_fails(tmp_path_location: Location, says: Says) -> None:
    part = publish(tmp_path_location / "model").parts["model.safetensors"]
    open_blobs(tmp_path_location / "model").put(part.path, b"other weights")
    _, err = says(1, "copy", tmp_path_location / "model", tmp_path_location / "copy")
    assert "is damaged, so it is not copied" in err
    assert part.path in err


def test_clean_lists_first_and_deletes_only_with_yes(
    location: Location, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_run(location / "model")
    publish(location / "model")
    begin_run(location / "next")
    stage(location / "next", "checkpoint.bin", bytes(1000))
    before = open_blobs(location).list()
    out, err = says(0, "clean", location)
    assert (out, err.strip()) == ("", "nothing is left over that was idle for 24 hours")
    clock = time.time() + 30 * 3600
    for module in (leftovers_module, clean_module):
        monkeypatch.setattr(module.time, "time", lambda: clock)
    out, err = says(0, "clean", location)
    lines = out.splitlines()
    assert "nothing is deleted without --yes" in err
    assert open_blobs(location).list() == before
    for line, what, place in zip(
        lines,
        ("state of a finished run", "part never committed", "state of an unfinished run"),
        ("model.run", "next", "next.run"),
        strict=False,
    ):
        assert line.startswith(what)
        assert "1 file, " in line
        assert "idle for 30 h" in line
        assert line.endswith(str(location / place))
    assert lines[3].startswith("3 files, ")
    out, err = says(0, "clean", location, "--yes")
    assert out == f"deleted {lines[3].removesuffix(' in all')}\n"
    assert "\n".join(lines) in err
    left = {f"model/{part.path}" for part in read_manifest(location / "model").parts.values()}
    assert set(open_blobs(location).list()) == left | {f"model/{MANIFEST_NAME}"}


def test_clean_leaves_what_came_to_life(
    tmp_path_location: Location, says: Says, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(tmp_path_location / "next", "checkpoint.bin", b"")
    monkeypatch.setattr(clean_module, "remove", lambda *_, **__: iter(()))
    out, err = says(0, "clean", tmp_path_location, "--older_than", "0", "--yes")
    assert out == "deleted 0 files, 0 B\n"
    assert "1 of them are in use again, or gone already" in err


def test_clean_refuses_an_age_that_nothing_has(says: Says) -> None:
    _, err = says(2, "clean", ".", "--older_than", "-1")
    assert "older_than is -1.0; expected hours, 0 or more" in err


def test_run_that_goes_on_shows_that_it_is_alive(tmp_path_location: Location) -> None:
    output = tmp_path_location / "model"
    begin_run(output)
    before = (output.sibling(".run") / "recipe.json").path.stat().st_mtime_ns
    begin_run(output)
    assert (output.sibling(".run") / "recipe.json").path.stat().st_mtime_ns > before


def test_curves_that_clean_keeps_are_those_that_runs_write() -> None:
    assert METRICS_FILE in leftovers_module._LOGS


def test_sizes_ages_and_columns() -> None:
    sizes = (0, 999, 1000, 1049, 9_949, 10_000, 999_400, 34_000_000_000, 5_600_000_000_000_000)
    assert [size_text(size) for size in sizes] == [
        *("0 B", "999 B", "1.0 kB", "1.0 kB", "9.9 kB", "10 kB", "999 kB", "34 GB", "5600 TB")
    ]
    assert [age_text(s) for s in (45, 720, 26 * 3600, 9 * 86400)] == [
        "45 s",
        "12 min",
        "26 h",
        "9 days",
    ]
    assert columns([("a", "1 B", "x"), ("bc", "10 B", "")], right=1) == ["a    1 B  x", "bc  10 B"]
    assert columns([]) == []
