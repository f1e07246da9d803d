"""Weights as safetensors.

Guarantee: what is loaded is bit for bit what was saved, dtypes included, and nothing is ever
unpickled: a pickle from a shared bucket can run any code in whoever loads it.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from storage.blobs import open_blobs
from storage.cache import read_cached_part
from storage.commit import read_manifest, stage
from storage.errors import CheckpointError
from storage.inventory import INDEX_SUFFIX, WEIGHTS_NAME
from storage.location import Address, Location, parse_location
from storage.manifest import Part
from storage.weight_shards import (
    INDEX_NAME,
    SHARD_BYTES,
    index_to_bytes,
    read_shards,
    shard_names,
    split_weights,
)

# Read at a time where a file is not needed as a whole.
_CHUNK_BYTES: Final = 16 * 2**20
_PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")

# What safetensors gives back as it was; packed four-bit and double complex dtypes it does not.
_DTYPES: Final = frozenset(
    {
        torch.bool,
        *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    }
)


def tensors_to_bytes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> bytes:
    """Return ``tensors`` as a safetensors file, whatever device or layout they have.

    Args:
        tensors: any dense tensors; not modified. Tied ones are stored once per name.
        metadata: free text for the file's header.

    Raises:
        ValueError: a value is not a dense tensor with data, or of a dtype safetensors lacks.
    """
    return safetensors.torch.save(
        _independent(tensors), None if metadata is None else dict(metadata)
    )


def tensors_from_bytes(data: bytes, *, source: str) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, on the CPU.

    Args:
        data: content of the file.
        source: where it came from; only named in errors.

    Raises:
        CheckpointError: ``data`` is no safetensors file, or a damaged one.
    """
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{source} has {len(data)} bytes that are not a complete safetensors file;"
            " expected one (was it written by safetensors.torch.save_file, and copied whole?)"
        ) from error


def stage_weights(
    location: Address, tensors: Mapping[str, Tensor], *, shard_bytes: int = SHARD_BYTES
) -> dict[str, Part]:
    """Stage ``tensors`` as the weights of the model that will be committed at ``location``.

    One file, or several and their index where it would be larger than ``shard_bytes``; no more than
    one is in memory at a time. The index names the files as they are stored, so that they are read
    where they lie.

    Raises:
        ValueError: a value cannot be stored, see :func:`tensors_to_bytes`.
    """
    parts, stored = {}, {}
    for name, names in split_weights(tensors, shard_bytes=shard_bytes).items():
        # The key is what Hugging Face's loaders tell torch's safetensors from others by.
        data = tensors_to_bytes({n: tensors[n] for n in names}, {"format": "pt"})
        parts[name] = stage(location, name, data)
        stored[parts[name].path] = names
    if WEIGHTS_NAME not in parts:
        parts[INDEX_NAME] = stage(location, INDEX_NAME, index_to_bytes(stored, tensors))
    return parts


def read_weights(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the weights that ``source`` names, on the CPU.

    Args:
        source: a committed location with a part ``model.safetensors``, or with an index of several
            files, which are checked against its manifest and kept on this machine, see
            :mod:`storage.cache`; or the path or S3 address of one ``.safetensors`` file, or of the
            ``.safetensors.index.json`` of several beside it.

    Raises:
        CheckpointError: it is a pickle, or no complete safetensors file.
        NotCommittedError: nothing is committed there, or nothing with weights.
        BlobMissingError: there is no such file.
    """
    location = parse_location(source)
    suffix = Path(location.name).suffix.lower()
    if location.name.endswith(INDEX_SUFFIX):
        blobs = open_blobs(location.parent)
        return read_shards(
            blobs.get(location.name),
            lambda file: tensors_from_bytes(blobs.get(file), source=str(location.parent / file)),
            source=str(location),
        )
    if suffix == ".safetensors":
        data = open_blobs(location.parent).get(location.name)
    elif suffix in _PICKLES:
        raise CheckpointError(
            f"{location} is a pickle by its suffix {suffix!r}, and loading one can run any code in"
            " it; expected .safetensors (convert with safetensors.torch.save_file)"
        )
    else:
        return _read_committed(location)
    return tensors_from_bytes(data, source=str(location))


def weights_digest(source: Address) -> str:
    """SHA-256 of the ``.safetensors`` file at ``source``, as ``sha256sum`` prints it.

    Of an index: that of the lines which ``sha256sum`` prints for the files that it names, sorted by
    name, and for itself.

    Raises:
        CheckpointError: an index is none.
        BlobMissingError: a file is not there.
    """
    location = parse_location(source)
    blobs = open_blobs(location.parent)

    def digest(name: str) -> str:
        sha256 = hashlib.sha256()
        with blobs.open(name) as file:
            while chunk := file.read(_CHUNK_BYTES):
                sha256.update(chunk)
        return sha256.hexdigest()

    if not location.name.endswith(INDEX_SUFFIX):
        return digest(location.name)
    names = shard_names(blobs.get(location.name), source=str(location))
    lines = "".join(f"{digest(name)}  {name}\n" for name in [*names, location.name])
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_committed(location: Location) -> dict[str, Tensor]:
    manifest = read_manifest(location)
    names = {part.path: name for name, part in manifest.parts.items()}

    def read(name: str) -> dict[str, Tensor]:
        data = read_cached_part(location, name, manifest=manifest)
        return tensors_from_bytes(data, source=str(location))

    if INDEX_NAME not in manifest.parts:
        return read(WEIGHTS_NAME)
    index = read_cached_part(location, INDEX_NAME, manifest=manifest)
    # A file that is no part of the commit is looked for by its name, and said to be missing.
    return read_shards(index, lambda file: read(names.get(file, file)), source=str(location))


def _independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``tensors`` on the CPU, contiguous, and no two in one storage, as safetensors wants them."""
    storages: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(  # noqa: TRY004 - a caller's value, as everywhere in this project
                f"tensor {name!r} is a {type(tensor).__name__}; expected a torch.Tensor"
            )
        if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError(
                f"tensor {name!r} is on {tensor.device} with layout {tensor.layout};"
                " expected a dense tensor that holds data"
            )
        if tensor.dtype not in _DTYPES:
            raise ValueError(
                f"tensor {name!r} has dtype {tensor.dtype}, which safetensors cannot hold;"
                " expected a real dtype or complex64"
            )
        dense = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = dense.untyped_storage().data_ptr()
        if dense.numel() and storage in storages:  # tied weights, or two views of one buffer
            dense = dense.clone()
            storage = dense.untyped_storage().data_ptr()
        storages.add(storage)
        result[name] = dense
    return result
