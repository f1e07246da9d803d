"""`ringfence show`: what is committed somewhere, how it was made, and what from."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass

import yaml

from ray_jobs.lineage import Ancestor, ancestors
from ray_jobs.tables import columns, size_text
from storage.commit import read_manifest
from storage.location import parse_location
from storage.manifest import Manifest


@dataclass(frozen=True)
class Show:
    """Show what is committed at a location, how it was made, and what from."""

    location: str
    """Location of anything committed."""
    _: KW_ONLY
    json: bool = False
    """Print one JSON object: the manifest, with `location` and the `ancestors` that were found."""


def run(job: Show) -> str:
    """Return the manifest and its ancestry as a person, or a program, reads them.

    Raises:
        NotCommittedError: nothing is committed there.
        StorageError: its manifest cannot be read. (One of an ancestor may be unreadable.)
    """
    location = parse_location(job.location)
    manifest = read_manifest(location)
    found = ancestors(manifest)
    if job.json:
        document = {
            "location": str(location),
            **dataclasses.asdict(manifest),
            "ancestors": [dataclasses.asdict(ancestor) for ancestor in found],
        }
        return json.dumps(document, indent=2, ensure_ascii=False)
    return "\n".join([*_facts(str(location), manifest), *_made_from(found)])


def _facts(location: str, manifest: Manifest) -> Iterator[str]:
    described = manifest.description
    yield from columns(
        [
            ("location", location),
            ("kind", manifest.kind),
            ("created", manifest.created),
            ("commit", manifest.commit_id),
            ("ringfence", str(described.get("ringfence_version", "not recorded"))),
        ]
    )
    for name in ("recipe", "metrics"):
        if name in described:
            text = yaml.safe_dump(described[name], sort_keys=False, allow_unicode=True)
            yield from ("", name, *(f"  {line}" for line in text.splitlines()))
    rows = [
        (f"  {name}", size_text(part.size_bytes), f"sha256 {part.sha256}")
        for name, part in manifest.parts.items()
    ]
    yield from ("", "parts", *columns(rows, right=1))


def _made_from(found: Sequence[Ancestor]) -> Iterator[str]:
    if found:
        yield from ("", "made from", *_tree(found, indent="  "))


def _tree(found: Sequence[Ancestor], *, indent: str) -> Iterator[str]:
    for number, ancestor in enumerate(found, start=1):
        is_last = number == len(found)
        yield f"{indent}{'└── ' if is_last else '├── '}{_line(ancestor)}"
        yield from _tree(ancestor.parents, indent=indent + ("    " if is_last else "│   "))


def _line(ancestor: Ancestor) -> str:
    said = []
    if ancestor.kind is not None:
        said.append(f"{ancestor.kind} of {str(ancestor.created)[:16].replace('T', ' ')}")
    if ancestor.commit_id is not None:
        said.append(f"commit {ancestor.commit_id}")
    if ancestor.sha256 is not None:
        said.append(f"sha256 {ancestor.sha256}")
    if ancestor.problem is not None:
        said.append(f"NOT REACHED: {ancestor.problem}")
    facts = f"  ({', '.join(said)})" if said else ""
    return f"{ancestor.role}: {ancestor.source or 'not recorded where'}{facts}"
