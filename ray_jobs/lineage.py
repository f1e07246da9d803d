"""What was made from what: recorded in a manifest's `parents`, and followed from there.

`parents` has for each thing that a job took either a location, or the digests of data. Beside the
location of a commit is its commit id, as `NAME_commit`, beside that of a file of weights its
digest, as `NAME_sha256`; manifests of older versions may lack them.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from storage.blobs import open_blobs
from storage.commit import read_manifest
from storage.errors import StorageError
from storage.inventory import WEIGHTS_SUFFIXES
from storage.location import parse_location
from storage.manifest import Manifest

PARENTS: Final = "parents"
_COMMIT: Final = "_commit"
_DIGEST: Final = "_sha256"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def parent(name: str, location: str | None) -> dict[str, object]:
    """What `parents` says of the commit or weights file at ``location``; None: there was none.

    A parent that cannot be read any more is recorded without its commit id or digest: what was made
    from it must not be lost for that.
    """
    if location is None:
        return {name: None}
    location = str(parse_location(location))
    recorded: dict[str, object] = {name: location}
    try:
        if _is_weights_file(location):
            # Imported here: it brings torch, which takes seconds, and most who look at what
            # something was made from do not need it.
            from storage.checkpoints import weights_digest

            recorded[name + _DIGEST] = weights_digest(location)
        else:
            recorded[name + _COMMIT] = read_manifest(location).commit_id
    except StorageError:
        return recorded
    return recorded


@dataclass(frozen=True, kw_only=True)
class Ancestor:
    """Something that a commit was made from."""

    role: str
    """What it was to the commit, for example ``model`` or ``original.train``."""
    source: str | None
    """Location, or the name of data; None where it is not known."""
    sha256: str | None = None
    """Of data and of files of weights: the digest that was recorded."""
    commit_id: str | None = None
    """Of a commit: the id that was recorded, or is found where none was."""
    kind: str | None = None
    """Of a commit that was reached."""
    created: str | None = None
    """Likewise: ISO 8601, UTC."""
    problem: str | None = None
    """Why it was not reached, or what about it does not match; null if all is well. Bytes are not
    read: whether a file of weights is what it was, ``sha256sum`` says."""
    parents: list["Ancestor"] = field(default_factory=list)
    """What it was itself made from, as far as that was reached."""


def ancestors(manifest: Manifest) -> list[Ancestor]:
    """Follow the parents of ``manifest``, and theirs, as far as they can be reached."""
    return list(_parents(manifest, seen=frozenset({manifest.commit_id})))


def _parents(manifest: Manifest, *, seen: frozenset[str]) -> Iterator[Ancestor]:
    recorded = manifest.description.get(PARENTS)
    recipe = manifest.description.get("recipe")
    for role, value, named in _leaves("", recorded, recipe):
        if role.endswith((_COMMIT, _DIGEST)):
            continue
        if _SHA256.fullmatch(value):
            yield _data(role, value, named, seen=seen)
        elif _is_weights_file(value):
            yield _weights_file(role, value, _text(recorded, role + _DIGEST))
        else:
            yield _commit(role, value, _text(recorded, role + _COMMIT), seen=seen)


def _text(recorded: object, key: str) -> str | None:
    value = recorded.get(key) if isinstance(recorded, Mapping) else None
    return value if isinstance(value, str) else None


def _leaves(role: str, recorded: object, recipe: object) -> Iterator[tuple[str, str, object]]:
    """Each text in ``recorded``, with its path and with what the recipe has at the same path."""
    if isinstance(recorded, str):
        yield role, recorded, recipe
    elif isinstance(recorded, Mapping):
        for key, value in recorded.items():
            in_recipe = recipe.get(key) if isinstance(recipe, Mapping) else None
            yield from _leaves(f"{role}.{key}".lstrip("."), value, in_recipe)
    elif isinstance(recorded, list):
        for number, value in enumerate(recorded):
            in_recipe = (
                recipe[number] if isinstance(recipe, list) and number < len(recipe) else None
            )
            yield from _leaves(f"{role}[{number}]", value, in_recipe)


def _data(role: str, sha256: str, named: object, *, seen: frozenset[str]) -> Ancestor:
    source = named.get("source") if isinstance(named, Mapping) else named
    if not isinstance(source, str):
        return Ancestor(role=role, source=None, sha256=sha256)
    if source.startswith(("/", "s3://")):
        commit = _commit(role, source, None, seen=seen)
        if commit.problem is None:  # most data is not committed, and is not expected to be
            return dataclasses.replace(commit, sha256=sha256)
    return Ancestor(role=role, source=source, sha256=sha256)


def _is_weights_file(source: str) -> bool:
    try:
        return parse_location(source).name.endswith(WEIGHTS_SUFFIXES)
    except StorageError:
        return False


def _weights_file(role: str, source: str, recorded: str | None) -> Ancestor:
    location = parse_location(source)
    problem = None
    try:
        if not open_blobs(location.parent).exists(location.name):
            problem = "is not there any more"
    except StorageError as error:
        problem = str(error)
    return Ancestor(role=role, source=source, sha256=recorded, problem=problem)


def _commit(role: str, source: str, recorded: str | None, *, seen: frozenset[str]) -> Ancestor:
    try:
        manifest = read_manifest(source)
    except StorageError as error:
        return Ancestor(role=role, source=source, commit_id=recorded, problem=str(error))
    found = manifest.commit_id
    if recorded not in (None, found):
        problem = f"has commit {found} now, and was {recorded} when it was used"
        return Ancestor(role=role, source=source, commit_id=recorded, problem=problem)
    return Ancestor(
        role=role,
        source=source,
        commit_id=found,
        kind=manifest.kind,
        created=manifest.created,
        # A manifest cannot name a later one, unless somebody wrote it by hand.
        parents=[] if found in seen else list(_parents(manifest, seen=seen | {found})),
    )
