"""What a user types: every wrong word ends in one clear line, exit code 2, and nothing written."""

import errno
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from ray_jobs.cli import COMMANDS, main, parse
from ray_jobs.reporting import duration, following, percent
from storage.commit import commit
from tests.conftest import TinyNetwork
from tests.ray_jobs.conftest import ROOT

RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))


@pytest.fixture
def recipe(tmp_path: Path, model: str) -> dict[str, object]:
    domain = {"train": "digits:train", "test": "digits:test"}
    return {
        "model": model,
        "original": {**domain, "classes": [0, 1, 2, 3, 4]},
        "restricted": [{**domain, "classes": [5, 6, 7, 8, 9]}],
        "output": str(tmp_path / "out" / "protected"),
    }


@pytest.fixture
def folder_of_one_class(tmp_path: Path) -> str:
    from PIL import Image

    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "cat" / "a.png")
    return str(tmp_path / "images")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be refused without a cluster is refused before one is started."""

    def start(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("ray.init", start)


def refuse(
    recipe: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str
) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert main(["protect-model", "--config", str(path), *options]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Traceback" not in shown.err
    assert len(shown.err.strip().splitlines()) == 1, shown.err
    assert not (tmp_path / "out").exists()
    return shown.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sophon.round", "5"], r"sophon\.round.*did you mean sophon\.rounds"),
        (["--confg", "other.yaml"], r"did you mean config\?"),
        (["--sophon.rounds", "many"], r"sophon\.rounds.*many"),
        (["--sophon.rounds", "0"], "rounds is 0; expected at least 1"),
        (["--sophon.max_original_drop", "2"], r"max_original_drop is 2.*did you mean 0\.02"),
        (["--sophon.suppression_loss", "ice"], "'ice', which names no loss; expected one of"),
        (["--sophon.suppression_loss", "kl_uniform"], "did you mean kl_to_uniform"),
        (
            ["--sophon.adversary", "[{optimizers: [SGD]}]"],
            r"optimizers has 'SGD', which names none.*did you mean sgd",
        ),
        (["--cluster.workers", "2"], "workers is 2, but sophon.episodes_per_round is 1"),
        (["--model", "/no/such/model"], "/no/such/model"),
        (["--model", "weights.safetensors"], r"weights\.safetensors, which does not say what"),
        (["--original.train", "/no/such/folder"], "/no/such/folder"),
        (["--original.train", "digit:train"], "digit:train"),
        (["--original.classes", "[0, 1, 2]"], "model has 5 classes, but the original domain has 3"),
        (["--original.classes", "[0]"], "class"),
        (["--original.classes", "[0, 1, 2, 3, 77]"], "77"),
        (["--output", "gs://bucket/x"], "gs://bucket/x"),
        (["--output", "{model}"], "is committed already and never rewritten"),
    ],
)
def test_bad_option_is_refused_by_name_and_value(
    options: list[str],
    message: str,
    recipe: dict[str, object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = str(recipe["model"])
    options = [model if option == "{model}" else option for option in options]
    shown = refuse(recipe, tmp_path, capsys, *options)
    assert re.search(message, shown), shown


def test_typo_inside_a_list_of_domains_is_refused(
    recipe: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe["restricted"] = [{"trian": "digits:train", "test": "digits:test"}]
    assert "did you mean train?" in refuse(recipe, tmp_path, capsys)


def test_folder_of_one_class_is_refused_by_its_name(
    recipe: dict[str, object],
    folder_of_one_class: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe["restricted"] = [{"train": folder_of_one_class, "test": "digits:test"}]
    shown = refuse(recipe, tmp_path, capsys)
    assert folder_of_one_class in shown
    assert "cat" in shown


def test_weights_file_of_another_class_count_is_refused(
    recipe: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in TinyNetwork(7).state_dict().items()}, path)
    recipe["model"] = str(path)
    recipe["network"] = {"architecture": "tests.conftest:TinyNetwork", "image_size": 8}
    shown = refuse(recipe, tmp_path, capsys)
    assert re.search(r"head of shape \(7, 64\).*expected 5 classes", shown)


def test_pickled_weights_are_refused(
    recipe: dict[str, object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pt"
    torch.save(TinyNetwork(5).state_dict(), path)
    recipe["model"] = str(path)
    assert "weights.pt" in refuse(recipe, tmp_path, capsys)


def test_unknown_and_missing_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protect"]) == 2
    shown = capsys.readouterr().err
    assert "'protect' is no command; expected one of pretrain, " in shown
    assert "did you mean protect-data or protect-model?" in shown
    assert main(["protect-model"]) == 2
    assert "(example: ringfence protect-model --config recipes/" in capsys.readouterr().err
    assert main(["pretrain", "--config", "no-such.yaml"]) == 2
    assert "no-such.yaml" in capsys.readouterr().err


def test_command_alone_says_what_to_do_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "ringfence demo" in shown.err
    assert max(map(len, shown.err.splitlines())) <= 80
    named = set(re.findall(r"[a-z-]+", shown.err)) & set(COMMANDS)
    assert named == set(COMMANDS) - {"completion"}


def test_there_are_recipes() -> None:
    assert RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_recipe_opens_with_the_command_that_runs_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    first_line = path.read_text().splitlines()[0]
    words = first_line.removeprefix("# ").split()
    assert words[0] == "ringfence"
    assert words[2:4] == ["--config", str(path.relative_to(ROOT))]
    name, job = parse(words[1:])
    assert isinstance(job, COMMANDS[name].recipe)


@pytest.mark.parametrize("name", COMMANDS)
def test_print_config_starts_nothing_and_help_explains_every_field(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert f"Example: {COMMANDS[name].example}" in " ".join(shown.split())
    # jsonargparse shows the docstring under each field; one without would show its type alone.
    assert not re.findall(r"\n  --(\S+) [A-Z_]+\n +\((?:type|required)", shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_example_of_a_command_parses_and_is_that_of_a_recipe_that_ships(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    words = shlex.split(COMMANDS[name].example.partition(" > ")[0])
    assert words[0] == "ringfence"
    assert parse(words[1:])[0] == name
    if "--config" in words:
        recipe = ROOT / words[words.index("--config") + 1]
        assert recipe.read_text().startswith(f"# {COMMANDS[name].example}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_summary_of_a_command_is_what_its_recipe_says(name: str) -> None:
    assert COMMANDS[name].summary == COMMANDS[name].recipe.__doc__.splitlines()[0]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"\n    {name}\s+[A-Z]", shown) for name in COMMANDS)


@pytest.mark.parametrize("name", ["ls", "show", "verify", "copy", "clean"])
def test_what_looks_after_locations_starts_without_ray_and_torch(name: str) -> None:
    # In a process of its own: this one has them.
    script = (
        "import sys; from ray_jobs.cli import main\n"
        f"main([{name!r}, *2 * ['/no/such']][: 3 if {name!r} == 'copy' else 2])\n"
        "assert not {'ray', 'torch', 'boto3', 'pyarrow'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert f"ringfence {name}: /no/such" in done.stderr


def test_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    for number in range(3):
        commit(tmp_path / str(number), {}, kind="x" * 100_000, description={})
    command = f"{sys.executable} -m ray_jobs.cli ls {tmp_path} | head -c 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"x", b"")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--training.random_crop_flip"], True),
        (["--training.random_crop_flip", "true"], True),
        (["--training.random_crop_flip=false"], False),
        (["--training.random_crop_flip", "false"], False),
        (["--training.random_crop_flip", "--training.epochs", "3"], True),
    ],
)
def test_switch_needs_no_value(options: list[str], expected: bool) -> None:
    path = ROOT / "recipes" / "digits" / "pretrain.yaml"
    _, job = parse(["pretrain", "--config", str(path), *options])
    assert job.training.random_crop_flip is expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "the following arguments are required: ls.location"),
        (["a", "b"], "unrecognized arguments: b"),
        (["a", "--jsno"], "did you mean json"),
        (["a", "--json=maybe"], "maybe"),
    ],
)
def test_bad_word_about_a_location_is_refused(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["ls", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--trajectory_checkpoints", "9"],
            "trajectory_checkpoints is 9, but training.epochs is 8",
        ),
        (["--trajectory_checkpoints", "0"], "trajectory_checkpoints is 0"),
        (["--training.epochs", "0"], "epochs is 0"),
    ],
)
def test_bad_trajectory_is_refused_by_name_and_value(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "recipes" / "digits" / "pretrain.yaml")
    assert main(["pretrain", "--config", recipe, *options]) == 2
    assert message in capsys.readouterr().err


def test_print_config_shows_the_resolved_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    path = ROOT / "recipes" / "digits" / "pretrain.yaml"
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", "--config", str(path), "--training.epochs", "3", "--print_config"])
    assert stopped.value.code == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["training"]["epochs"] == 3
    assert shown["original"]["validation_share"] == 0.1


def test_progress_follows_whole_lines_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"n": 0}\n')
    with (
        caplog.at_level("INFO", logger="ray_jobs"),
        following(path, lambda row: f"row {row['n']}"),
        path.open("a", buffering=1) as file,
    ):
        file.write('{"n": 1}\n{"n":')
        file.flush()
        file.write(" 2}\n")
    assert [record.getMessage() for record in caplog.records] == ["row 1", "row 2"]


def test_numbers_as_a_person_reads_them() -> None:
    assert (percent(0.1234), percent(None)) == ("12.3 %", "-")
    assert [duration(s) for s in (45, 720, 12600)] == ["45 s", "12 min", "3.5 h"]


def test_a_full_disk_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_: object) -> str:
        raise OSError(errno.ENOSPC, "No space left on device", "/small/metrics.jsonl")

    monkeypatch.setattr("ray_jobs.ls.run", run)
    assert main(["ls", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert said == (
        "ringfence ls: the disk of /small/metrics.jsonl is full; expected free space on it\n"
    )


def test_shell_that_nothing_is_known_of_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 2
    assert "shell is 'fish'; expected one of bash, zsh, tcsh" in capsys.readouterr().err


def test_completion_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jsonargparse._completions.find_spec", lambda _: None)
    assert main(["completion", "bash"]) == 2
    assert "expected the package shtab (pip install shtab)" in capsys.readouterr().err


def test_bash_completes_commands_fields_and_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "ringfence"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "recipe.yaml").touch()

    def completed(*words: str) -> set[str]:
        typed = " ".join(map(shlex.quote, words))
        ask = (
            f"source {script}; COMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; "
            "_shtab_ringfence 2>/dev/null; printf '%s\\n' ${COMPREPLY[@]}"
        )
        done = subprocess.run(
            ["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return set(done.stdout.split())

    assert completed("ringfence", "prot") == {"protect-model", "protect-data"}
    rounds = completed("ringfence", "protect-model", "--sophon.ro")
    assert rounds == {"--sophon.rounds"}
    assert "recipe.yaml" in completed("ringfence", "protect-model", "--config", "rec")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"HOME": "with a token"}, "token"),
        ({"RAY_AUTH_TOKEN": "a"}, "token"),
        ({"RAY_AUTH_TOKEN_PATH": "with a token/.ray/auth_token"}, "token"),
        ({"HOME": "with a token", "RAY_AUTH_TOKEN_PATH": "elsewhere"}, None),
        ({"HOME": "with a token", "RAY_AUTH_MODE": "disabled"}, "disabled"),
    ],
)
def test_a_token_that_is_here_is_presented_unless_told_otherwise(
    given: dict[str, str],
    expected: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = tmp_path / "with a token" / ".ray" / "auth_token"
    token.parent.mkdir(parents=True)
    token.write_text("secret")
    monkeypatch.chdir(tmp_path)
    environment = {"HOME": str(tmp_path), **given}
    if "HOME" in given:
        environment["HOME"] = str(tmp_path / given["HOME"])
    monkeypatch.setattr(os, "environ", environment)
    main([])
    assert environment.get("RAY_AUTH_MODE") == expected
