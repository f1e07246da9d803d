"""How a report came about: what somebody else needs to run the same audit."""

import platform
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Final

import yaml

from ray_jobs.runs import Run
from storage.location import parse_location

_IDENTITY: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{64}")
_LIBRARIES: Final = ("ringfence", "torch", "torchvision", "timm", "ray")


def run_facts(this_run: Run, parents: Mapping[str, Any]) -> dict[str, Any]:
    """What a report says of its own run, as JSON: recipe, versions, date, and ``parents``.

    Args:
        this_run: of the audit.
        parents: what was audited and against what: locations, commit ids, digests.
    """
    recipe = dict(this_run.recipe)
    return {
        "command": recipe.pop("command"),
        "recipe": recipe,
        "versions": {
            "python": platform.python_version(),
            **{library: version(library) for library in _LIBRARIES},
        },
        "date": datetime.now(UTC).date().isoformat(),
        "parents": dict(parents),
    }


def subject(run: Mapping[str, Any]) -> str:
    """Name of what was audited and of its folder: others that lead there are nobody's business."""
    location = parse_location(run["parents"]["protected"])
    return f"{location.parent.name}/{location.name}".lstrip("/")


def command(run: Mapping[str, Any]) -> str:
    """The command line that repeats the audit, given its recipe in a file."""
    return f"ringfence {run['command']} --config {run['command']}.yaml"


def recipe_yaml(run: Mapping[str, Any]) -> str:
    """The recipe as the command line reads it."""
    return yaml.safe_dump(dict(run["recipe"]), sort_keys=False, allow_unicode=True)


def versions(run: Mapping[str, Any]) -> str:
    """What it ran on."""
    return ", ".join(f"{name} {number}" for name, number in run["versions"].items())


def origins(run: Mapping[str, Any]) -> dict[str, str]:
    """Locations, commit ids and digests of all that the audit read, by name."""
    return dict(_flat(run["parents"]))


def identities(run: Mapping[str, Any]) -> dict[str, str]:
    """The `origins` that mean the same to everybody: commit ids and digests, no locations."""
    return {name: value for name, value in origins(run).items() if _IDENTITY.fullmatch(value)}


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested JSON, each under the path to it."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        numbers = [str(number) for number in range(1, len(value) + 1)] if len(value) > 1 else [""]
        items = list(zip(numbers, value, strict=False))
    else:
        yield name, str(value)
        return
    for key, item in items:
        yield from _flat(item, f"{name} {key.replace('_', ' ')}".strip())
