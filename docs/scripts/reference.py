"""Write docs/reference/ from the recipes' dataclasses: `python -m docs.scripts.reference`.

A field's text is the docstring below it, its type and default are the dataclass' own. A test fails
where the pages are older than the code.
"""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from ray_jobs.commands import COMMANDS

FOLDER: Final = Path(__file__).parent.parent / "reference"
_GENERATED: Final = "<!-- Written by docs/scripts/reference.py; change the dataclasses instead. -->"


def pages() -> dict[str, str]:
    """File name and text of every page."""
    return {"commands.md": "\n".join(_commands()), "recipes.md": "\n".join(_recipes())}


def _commands() -> Iterator[str]:
    yield from (_GENERATED, "", "# Commands", "")
    yield (
        "Every command takes its fields from a YAML recipe (`--config`), from the command line "
        "(`--field value`, `--field.of.a.part value`), or from both: what comes later wins. "
        "`--print_config` shows the whole recipe and starts nothing. What a command makes goes to "
        "stdout, what happens on the way to stderr. The exit code is 0 where it is done, 1 where "
        "the job failed, 2 where it cannot be run as asked.\n"
    )
    for name, command in COMMANDS.items():
        yield from (f"## {name}", "", command.summary, "", "```", command.example, "```", "")
        yield from _fields(command.recipe, recipes="recipes.md")


def _recipes() -> Iterator[str]:
    yield from (_GENERATED, "", "# Parts of recipes", "")
    yield "What the fields of [commands](commands.md) are made of.\n"
    for part in sorted(_parts(), key=lambda part: part.__name__):
        summary = _sentences(inspect.getdoc(part) or "")
        yield from (f"## {part.__name__}", "", summary, "")
        yield from _fields(part, recipes="")


def _parts() -> set[type]:
    """Every dataclass that is the type of a field, of a command or of another part."""
    found: set[type] = set()
    pending = [command.recipe for command in COMMANDS.values()]
    while pending:
        hints = get_type_hints(pending.pop())
        new = {part for hint in hints.values() for part in _dataclasses(hint)} - found
        found |= new
        pending += new
    return found


def _dataclasses(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        yield hint
    for argument in get_args(hint):
        yield from _dataclasses(argument)


def _fields(recipe: Any, *, recipes: str) -> Iterator[str]:
    texts, hints = _texts(recipe), get_type_hints(recipe)
    for field in dataclasses.fields(recipe):
        annotation, text = texts[field.name]
        parts = {part.__name__ for part in _dataclasses(hints[field.name])}
        shown = re.sub(
            "|".join(parts) or "(?!)",
            lambda name: f"`[`{name[0]}`]({recipes}#{name[0].lower()})`",
            annotation,
        )
        shown = f"`{shown}`".replace("``", "")
        said = text or " ".join(
            _sentences(inspect.getdoc(part) or "") for part in _dataclasses(hints[field.name])
        )
        yield f"`{field.name}` · {shown} · {_default(field)}"
        yield f":   {said}\n"


def _texts(recipe: Any) -> dict[str, tuple[str, str]]:
    """Annotation and docstring of each field, as they are written, its bases' fields first."""
    found = {}
    for base in reversed(inspect.getmro(recipe)[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for node, after in zip(definition.body, [*definition.body[1:], None], strict=True):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                is_said = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                text = " ".join(after.value.value.split()) if is_said else ""
                found[node.target.id] = (ast.unparse(node.annotation), text)
    return found


def _default(field: Any) -> str:
    """The default as a recipe would have it."""
    if field.default is not dataclasses.MISSING:
        return f"default `{json.dumps(field.default, ensure_ascii=False)}`"
    if field.default_factory is dataclasses.MISSING:
        return "**required**"
    value = field.default_factory()
    if dataclasses.is_dataclass(value):
        return "default: all of its own"
    if isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
        return "default: one, as it is by default"
    return f"default `{json.dumps(value)}`"


def _sentences(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
