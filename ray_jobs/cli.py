"""The `ringfence` command: one subcommand a job, its options the fields of the job's recipe.

stdout carries the location that a job made, or what was asked for, stderr what happened on the way.
Exit codes: 0 done, 1 the job failed, 2 it was asked for something that cannot be run.
"""

import dataclasses
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from protection.names import nearest
from ray_jobs.commands import COMMANDS
from ray_jobs.errors import JobError, UsageError, full_disk
from ray_jobs.recipes import plain
from ray_jobs.terminal import configure, failure
from storage.errors import StorageError, UnavailableError

FIRST_STEPS: Final = """\
Ringfence keeps what you release from being used for what you did not release it
for. Begin with

  ringfence demo    protects a model and images that are here, audits both

You publish weights    pretrain, protect-model, audit-model, card
You publish images     pretrain, protect-data, verify, audit-data, card
You audit a release    audit-model, audit-data, show, verify
You run the cluster    ls, show, copy, clean, sweep

A job reads a recipe. Copy one of recipes/: its first line is the command that
runs it. `ringfence COMMAND --help` explains every field.\
"""
_TRUTH: Final = ("true", "false")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    configure(sys.stderr)
    # A model factory named in a recipe may be in the working directory, which scripts do not
    # search.
    sys.path.insert(0, str(Path.cwd()))
    _present_token()
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        print(FIRST_STEPS, file=sys.stderr)
        return 2
    try:
        name, recipe = parse(arguments)
    except (ArgumentError, ValueError) as error:
        return _fail("ringfence", _plain(error, _chosen(arguments)), code=2)
    try:
        if result := COMMANDS[name].run(recipe):
            _print(result)
    except (JobError, UnavailableError) as error:
        return _fail(f"ringfence {name}", error, code=1)
    except (ValueError, StorageError) as error:
        return _fail(f"ringfence {name}", error, code=2)
    except OSError as error:
        if (said := full_disk(error)) is None:
            raise
        return _fail(f"ringfence {name}", said, code=1)
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on from here"
        return _fail(f"ringfence {name}", message, code=1)
    return 0


def _present_token() -> None:
    """Have Ray present the cluster's token where there is one, unless told otherwise.

    Ray itself asks for a token by default where it starts a cluster and has one, and presents none
    where it connects to that cluster. It reads the setting when it is imported.
    """
    # A cluster that asks for none takes who brings one.
    kept = os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")
    if "RAY_AUTH_TOKEN" in os.environ or Path(kept).expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def parse(arguments: Sequence[str]) -> tuple[str, Any]:
    """Return the subcommand of the command line and its recipe.

    Raises:
        ArgumentError, ValueError: the subcommand or a field is unknown, or a field missing, of
        another type, or refused by its dataclass.
    """
    chosen = _chosen(arguments)
    if chosen is None and not arguments[0].startswith("-"):
        raise UsageError(
            f"{arguments[0]!r} is no command; expected one of {', '.join(COMMANDS)}"
            f"{nearest(arguments[0], COMMANDS, most=2)}"
        )
    parser, subparsers = build_parser([] if chosen is None else [chosen])
    namespace = parser.parse_args(_spelled_out(arguments, chosen))
    name = namespace.subcommand
    values = vars(subparsers[name].instantiate(namespace[name]))
    return name, COMMANDS[name].recipe(**{k: v for k, v in values.items() if k != "config"})


def build_parser(chosen: Collection[str]) -> tuple[ArgumentParser, dict[str, ArgumentParser]]:
    """Parser of the command, and of each subcommand; only the chosen ones have their fields.

    Help texts are the recipes' docstrings.
    """
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(
        prog="ringfence",
        description="Protect what you release, and audit the protection.",
        epilog="Each command's --help explains its fields and has a command that runs as it is.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(metavar="COMMAND")
    subparsers = {}
    for name, command in COMMANDS.items():
        subparser = ArgumentParser(
            epilog=f"Example: {command.example}",
            exit_on_error=False,
            allow_abbrev=False,
        )
        if name in chosen:
            # Where fields need no name, the command is short enough without a file.
            if all(field.kw_only for field in dataclasses.fields(command.recipe)):
                subparser.add_argument(
                    "--config", action="config", help="YAML recipe, e.g. one of recipes/."
                )
            subparser.add_class_arguments(command.recipe, as_positional=True)
        commands.add_subcommand(name, subparser, help=command.summary)
        subparsers[name] = subparser
    return parser, subparsers


def _chosen(arguments: Sequence[str]) -> str | None:
    """The subcommand that the command line asks for, if it is one."""
    return arguments[0] if arguments and arguments[0] in COMMANDS else None


def _spelled_out(arguments: Sequence[str], chosen: str | None) -> list[str]:
    """``arguments`` with a value for every switch: `--yes` alone stands for `--yes=true`."""
    switches = {f"--{path}" for path, hint in _fields(chosen) if hint is bool}
    following = [*arguments[1:], ""]
    return [
        f"{word}=true" if word in switches and after.lower() not in _TRUTH else word
        for word, after in zip(arguments, following, strict=True)
    ]


def _print(result: str) -> None:
    try:
        print(result, flush=True)
    except BrokenPipeError:  # as in `ringfence ls | head`: nobody wants the rest
        # What is left in the buffer would fail once more when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(command: str, message: object, *, code: int) -> int:
    print(failure(command, message, sys.stderr), file=sys.stderr)
    return code


def _plain(error: Exception, chosen: str | None) -> str:
    """The parser's message on one line, with the nearest name where a field is unknown."""
    text = plain(error)
    unknown = re.search(
        r"option '(?P<a>\S+)' is not accepted|accept option '(?P<b>\S+)'|arguments: --(?P<c>\S+)",
        text,
        re.IGNORECASE,
    )
    if unknown is None:
        if chosen is None or "arguments are required" not in text:
            return text
        return f"{text} (example: {COMMANDS[chosen].example})"
    (word,) = filter(None, unknown.groups())
    names = {name for path, _ in _fields(chosen) for name in (path, path.rpartition(".")[2])}
    names |= {"config", "print_config"}
    hint = nearest(word, sorted(names)) or " (--help lists them)"
    return f"{text}; expected a field of the recipe{hint}"


def _fields(chosen: str | None) -> Iterator[tuple[str, Any]]:
    """Every field of the chosen command's recipe, by the path to it, with its type."""
    pending = [] if chosen is None else [(COMMANDS[chosen].recipe, "")]
    while pending:
        recipe, prefix = pending.pop()
        hints = get_type_hints(recipe)
        for field in dataclasses.fields(recipe):
            name, hint = field.name, hints[field.name]
            yield prefix + name, hint
            for part in (hint, *get_args(hint)):
                if dataclasses.is_dataclass(part) and isinstance(part, type):
                    pending.append((part, f"{prefix}{name}."))


if __name__ == "__main__":
    sys.exit(main())
