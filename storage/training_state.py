"""Training state as a commit: what a resumed run loads is whole, or it is not there.

Guarantee: what is loaded is bit for bit what was saved, dtypes included, every byte checked, and
nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from typing import Final

from storage.checkpoints import tensors_from_bytes, tensors_to_bytes
from storage.commit import commit, read_manifest, read_part
from storage.errors import (
    BlobMissingError,
    CheckpointError,
    DigestMismatchError,
    ManifestError,
)
from storage.inventory import STATE_KIND
from storage.location import Address
from storage.state_tree import decode, encode

DAMAGED: Final = (BlobMissingError, CheckpointError, DigestMismatchError, ManifestError)
"""What reading a state raises that was committed and is not what it was."""

_TENSORS: Final = "state.safetensors"
_TREE: Final = "state.json"
_FORMAT: Final = ("ringfence training state", 1)


def commit_training_state(location: Address, state: Mapping[str, object]) -> None:
    """Commit ``state`` at ``location``.

    Args:
        location: of this state alone.
        state: mappings with string, integer or boolean keys, lists, tuples (which come back as
            lists), tensors, numbers, strings, booleans and None, nested at will.

    Raises:
        AlreadyCommittedError: something is committed at ``location``; it stays as it is.
        ValueError: something in ``state`` is of another type; the message says where.
    """
    tree, tensors = encode(state, name="state")
    document = {"format": _FORMAT[0], "version": _FORMAT[1], "state": tree}
    parts = {
        _TENSORS: tensors_to_bytes(tensors),
        _TREE: json.dumps(document, allow_nan=False).encode(),
    }
    commit(location, parts, kind=STATE_KIND, description={})


def read_training_state(location: Address) -> dict[str, object]:
    """Return what :func:`commit_training_state` was given, with its tensors on the CPU.

    Raises:
        NotCommittedError: no state is at ``location``.
        BlobMissingError, DigestMismatchError, ManifestError: it was damaged since.
        CheckpointError: what is committed there is no training state.
    """
    manifest = read_manifest(location)
    if manifest.kind != STATE_KIND:
        raise CheckpointError(
            f"{location} is a committed {manifest.kind}; expected a {STATE_KIND}, of which a run"
            " keeps some beside its output"
        )
    data, text = (read_part(location, name, manifest=manifest) for name in (_TENSORS, _TREE))
    tensors = tensors_from_bytes(data, source=f"{location}'s {_TENSORS}")
    try:
        document = json.loads(text)
        found = (document["format"], document["version"])
        state = decode(document["state"], tensors) if found == _FORMAT else None
    except (ValueError, TypeError, KeyError) as error:
        raise CheckpointError(
            f"{location}'s {_TREE} is damaged; expected what commit_training_state wrote"
        ) from error
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{location}'s {_TREE} is {found[0]!r}, version {found[1]!r};"
            f" expected {_FORMAT[0]!r}, version {_FORMAT[1]}"
        )
    return state
