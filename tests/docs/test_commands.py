"""Every command and every recipe that the documentation shows is one that Ringfence takes."""

import functools
import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentError
from ray.scripts.scripts import cli as ray_cli

from ray_jobs.cli import parse
from ray_jobs.commands import COMMANDS
from ray_jobs.errors import UsageError
from tests.docs.pages import PAGES, ROOT, Block, blocks, commands, name_of, write_files

# What else a reader types; nothing of it is Ringfence's.
OTHERS = {"source", "export", "pytest"}
# A recipe that has the fields which a block that is a part of one leaves out.
WHOLE = {"audit-model": "digits/audit-model.yaml", "protect-model": "digits/protect-model.yaml"}
with_pages = pytest.mark.parametrize("page", PAGES, ids=name_of)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a reader is in, from which Python imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def check(command: str) -> None:
    """Refuse what cannot be typed in the working directory."""
    words = shlex.split(command, comments=True)
    while re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    ends = [number for number, word in enumerate(words) if word in (">", ">>", "|")]
    words = words[: ends[0]] if ends else words
    if words[0] == "ringfence":
        check_ringfence([word for word in words[1:] if word != "--print_config"])
    elif words[0] == "make":
        for target in words[1:]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    elif words[0] == "python":
        assert words[1] == "-m", command
        assert importlib.util.find_spec(words[2]) is not None, command
    elif words[0] == "ray":
        assert words[1] in ray_cli.commands, command
        if "--" in words:  # of a job, what it runs
            check(shlex.join(words[words.index("--") + 1 :]))
    else:
        assert words[0] in OTHERS, command


def check_ringfence(arguments: list[str]) -> None:
    if arguments and "--help" not in arguments:
        files = [Path(word) for word in arguments if word.endswith(".yaml")]
        take(tuple(arguments), tuple(file.read_text() for file in files if file.is_file()))
    elif len(arguments) == 2:
        assert arguments[0] in COMMANDS


@functools.cache  # pages share commands, and building a parser takes a third of a second
def take(arguments: tuple[str, ...], recipes: tuple[str, ...]) -> None:
    """Parse a command line, whose recipes read so."""
    del recipes
    parse(arguments)


@with_pages
def test_commands_of_the_page_are_taken(page: Path, folder: Path) -> None:
    write_files(page, folder)
    for command in commands(page):
        check(command)


@with_pages
def test_recipes_of_the_page_are_taken(page: Path, folder: Path) -> None:
    write_files(page, folder)
    for number, block in enumerate(blocks(page, "yaml")):
        check(whole_command(block, folder / f"part-{number}.yaml"))


def whole_command(block: Block, part: Path) -> str:
    """The command that runs the recipe ``block``, or one with the recipe that it is a part of."""
    words = block.first_line.split()
    if words[0] == "ringfence":
        return block.first_line
    assert words[0] == "of", f"{block.first_line!r} does not say what recipe it is"
    part.write_text(block.text)
    return f"ringfence {words[1]} --config recipes/{WHOLE[words[1]]} --config {part}"


@pytest.mark.parametrize(
    "command",
    [
        "ringfence protect-modell --config recipes/digits/protect-model.yaml",
        "ringfence protect-model --config recipes/digits/no-such.yaml",
        "ringfence clean runs --older_then 48",
        "make everything",
        "rm -rf runs",
    ],
)
def test_a_wrong_command_is_found(command: str, folder: Path) -> None:
    (folder / "recipes").symlink_to(ROOT / "recipes")
    with pytest.raises((AssertionError, ArgumentError, UsageError)):
        check(command)


@with_pages
def test_python_of_the_page_runs(page: Path, folder: Path) -> None:
    for block in blocks(page, "python"):
        exec(compile(block.text, name_of(page), "exec"), {"__name__": "of_the_page"})


@pytest.mark.parametrize("page", sorted(ROOT.glob("*.md")), ids=name_of)
def test_links_and_pictures_of_the_root_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text().replace("\n", " ")):
        if not target.startswith("https://"):
            assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "path",
    [ROOT / "CITATION.cff", *sorted((ROOT / ".github").rglob("*.yml"))],
    ids=lambda path: path.name,
)
def test_forms_are_yaml(path: Path) -> None:
    assert yaml.safe_load(path.read_text())
