"""The `ringfence` command: one subcommand a job, its options the fields of the job's recipe.

stdout carries the location that a job made, stderr what happened on the way. Exit codes: 0 done, 1
the job failed, 2 it was asked for something that cannot be run.
"""

import dataclasses
import difflib
import logging
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from ray_jobs import (
    audit_data,
    audit_model,
    demo,
    pretrain,
    protect_data,
    protect_model,
    sweep,
    sweep_recipe,
    verify,
)
from ray_jobs.errors import JobError
from ray_jobs.recipes import plain
from storage.errors import StorageError, UnavailableError


class Command(NamedTuple):
    """A subcommand: the dataclass that its recipe fills, and what runs it."""

    recipe: type
    run: Callable[[Any], str]


COMMANDS: Final[dict[str, Command]] = {
    "pretrain": Command(pretrain.Pretrain, pretrain.run),
    "protect-model": Command(protect_model.ProtectModel, protect_model.run),
    "audit-model": Command(audit_model.AuditModel, audit_model.run),
    "protect-data": Command(protect_data.ProtectData, protect_data.run),
    "verify": Command(verify.Verify, verify.run),
    "audit-data": Command(audit_data.AuditData, audit_data.run),
    "sweep": Command(sweep_recipe.Sweep, sweep.run),
    "demo": Command(demo.Demo, demo.run),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ray_jobs").setLevel(logging.INFO)
    # A model factory named in a recipe may be in the working directory, which scripts do not
    # search.
    sys.path.insert(0, str(Path.cwd()))
    try:
        name, recipe = parse(arguments)
    except (ArgumentError, ValueError) as error:
        return _refuse(f"ringfence: {_plain(error)}")
    try:
        print(COMMANDS[name].run(recipe))
    except (JobError, UnavailableError) as error:
        print(f"ringfence {name}: {error}", file=sys.stderr)
        return 1
    except (ValueError, StorageError) as error:
        return _refuse(f"ringfence {name}: {error}")
    except KeyboardInterrupt:
        print(f"ringfence {name}: interrupted; the same command goes on from here", file=sys.stderr)
        return 1
    return 0


def parse(arguments: Sequence[str] | None) -> tuple[str, Any]:
    """Return the subcommand of the command line and its recipe.

    Raises:
        ArgumentError, ValueError: a field is unknown, missing, of another type, or refused by its
        dataclass.
    """
    parser, subparsers = build_parser()
    namespace = parser.parse_args(arguments)
    name = namespace.subcommand
    values = vars(subparsers[name].instantiate(namespace[name]))
    return name, COMMANDS[name].recipe(**{k: v for k, v in values.items() if k != "config"})


def build_parser() -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Parser of the command, and of each subcommand; help texts are the recipes' docstrings."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="ringfence",
        description="Protect what you release, and audit the protection.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    subparsers = {}
    for name, command in COMMANDS.items():
        subparser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
        subparser.add_argument(
            "--config", action="config", help="YAML recipe, e.g. one of recipes/."
        )
        subparser.add_class_arguments(command.recipe)
        summary = (command.recipe.__doc__ or "").splitlines()[0]
        commands.add_subcommand(name, subparser, help=summary)
        subparsers[name] = subparser
    return parser, subparsers


def _refuse(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def _plain(error: Exception) -> str:
    """The parser's message on one line, with the nearest name where a field is unknown."""
    text = plain(error)
    unknown = re.search(
        r"option '(?P<a>\S+)' is not accepted|accept option '(?P<b>\S+)'|arguments: --(?P<c>\S+)",
        text,
        re.IGNORECASE,
    )
    if unknown is None:
        return text
    (word,) = filter(None, unknown.groups())
    near = difflib.get_close_matches(word, _field_names(), n=1)
    return f"{text}; expected a field of the recipe" + (
        f" (did you mean {near[0]}?)" if near else " (--help lists them)"
    )


def _field_names() -> list[str]:
    """Every field name of every recipe, with and without the path to it."""
    paths: set[str] = set()
    pending = [(command.recipe, "") for command in COMMANDS.values()]
    while pending:
        recipe, prefix = pending.pop()
        for name, hint in get_type_hints(recipe).items():
            paths |= {name, prefix + name}
            for part in (hint, *get_args(hint)):
                if dataclasses.is_dataclass(part) and isinstance(part, type):
                    pending.append((part, f"{prefix}{name}."))
    return sorted(paths)


if __name__ == "__main__":
    sys.exit(main())
