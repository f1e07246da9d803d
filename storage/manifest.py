"""The list of what was committed at a location: the one file that makes it exist for readers.

Guarantee: a manifest that parses names every part with its size and SHA-256, and no part outside
its own location. Anything else is refused, never guessed at.
"""

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from storage.errors import ManifestError
from storage.location import Location

MANIFEST_NAME: Final = "MANIFEST.json"
VERSION: Final = 1

_T = TypeVar("_T")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
# Part names become object keys and file names everywhere, so only what all of them allow.
_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PLAIN: Final = "expected letters, digits, '_', '-' and '.', not starting with '.' or '-'"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One blob of a commit."""

    path: str
    """File name inside the location; contains the digest, so no rival can overwrite it."""
    sha256: str
    """SHA-256 of the bytes, 64 lower-case hexadecimal digits."""
    size_bytes: int
    """Number of bytes."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that one commit published."""

    kind: str
    """What this is, for example ``model`` or ``dataset``."""
    created: str
    """When it was committed: ISO 8601, UTC."""
    description: dict[str, object]
    """How it was made, as JSON: the resolved recipe, metrics, what it was made from."""
    parts: dict[str, Part]
    """Part name to blob."""
    commit_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Random; tells a committer whose manifest won when the store's answer was lost."""

    def to_json(self) -> bytes:
        """The manifest as UTF-8 JSON with sorted keys, readable by people too."""
        parts = {name: vars(part) for name, part in self.parts.items()}
        document = {"format": "ringfence", "version": VERSION, **vars(self), "parts": parts}
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, location: Location) -> "Manifest":
        """Read what :meth:`to_json` wrote.

        Args:
            data: content of ``location``'s MANIFEST.json.
            location: only named in errors.

        Raises:
            ManifestError: ``data`` is not a manifest, is damaged, or is of a newer version.
        """
        where = f"{location}'s {MANIFEST_NAME}"
        try:
            document = json.loads(data)
        except (ValueError, RecursionError) as error:  # also not UTF-8, or nested without end
            raise ManifestError(f"{where} is not JSON; expected a Ringfence manifest") from error
        if not isinstance(document, dict) or document.get("format") != "ringfence":
            raise ManifestError(f"{where} is not Ringfence's; expected 'format': 'ringfence'")
        version = document.get("version")
        if type(version) is int and version > VERSION:
            raise ManifestError(
                f"{where} has version {version}, newer than this program can read;"
                f" expected at most {VERSION} (upgrade ringfence)"
            )
        if type(version) is not int or version != VERSION:
            raise ManifestError(f"{where} has version {version!r}; expected {VERSION}")
        parts = _field(document, "parts", dict, where)
        return cls(
            kind=_field(document, "kind", str, where),
            created=_field(document, "created", str, where),
            commit_id=_field(document, "commit_id", str, where),
            description=_field(document, "description", dict, where),
            parts={name: _part(name, entry, where) for name, entry in parts.items()},
        )


def require_file_name(name: str) -> None:
    """Refuse a part name that is not a plain file name.

    Raises:
        ValueError: ``name`` is empty, hidden, has a folder or an unusual character.
    """
    if not _FILE_NAME.fullmatch(name):
        raise ValueError(f"part name is {name!r}, not a plain file name; {_PLAIN}")


def require_json(value: object, *, name: str) -> None:
    """Refuse what JSON would change or cannot hold, naming where in ``value`` it is.

    Raises:
        ValueError: a number is not finite, a key not a string, or a value of another type.
    """
    if isinstance(value, Mapping):
        if odd_keys := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{name} has the key {odd_keys[0]!r}; expected strings, as JSON has")
        for key, item in value.items():
            require_json(item, name=f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            require_json(item, name=f"{name}[{index}]")
    elif isinstance(value, float) and not abs(value) < float("inf"):
        raise ValueError(f"{name} is {value}, which JSON has no number for; expected a finite one")
    elif not (value is None or isinstance(value, str | int | float)):
        raise ValueError(
            f"{name} is {value!r}, a {type(value).__name__}; expected null, a boolean, number,"
            " string, list or mapping (convert it first)"
        )


def _part(name: str, entry: object, where: str) -> Part:
    where = f"{where}, part {name!r},"
    # The manifest came over the network: its names must not lead out of the location, nor out of
    # the folder where somebody keeps a part under its name.
    if not _FILE_NAME.fullmatch(name):
        raise ManifestError(f"{where} has a name that is no plain file name; {_PLAIN}")
    if not isinstance(entry, dict):
        raise ManifestError(f"{where} is {entry!r}; expected path, sha256 and size_bytes")
    part = Part(
        path=_field(entry, "path", str, where),
        sha256=_field(entry, "sha256", str, where),
        size_bytes=_field(entry, "size_bytes", int, where),
    )
    if not _FILE_NAME.fullmatch(part.path):
        raise ManifestError(f"{where} has path {part.path!r}; expected a plain file name")
    if not _SHA256.fullmatch(part.sha256) or part.size_bytes < 0:
        raise ManifestError(
            f"{where} has sha256 {part.sha256!r} and size_bytes {part.size_bytes};"
            " expected 64 hexadecimal digits and a size of at least 0"
        )
    return part


def _field(entry: dict[str, object], key: str, kind: type[_T], where: str) -> _T:
    value = entry.get(key)
    if type(value) is not kind:  # not isinstance: true is an int in Python
        raise ManifestError(f"{where} has {key} {value!r}; expected a {kind.__name__}")
    return value
