"""Weights of a model in several files, as Hugging Face lays them out.

An index, ``model.safetensors.index.json``, says in which file each tensor is; the files are plain
safetensors. Guarantee: an index that parses names files beside it and nothing else, and weights
come back whole or not at all.
"""

import json
from collections.abc import Callable, Mapping
from typing import Final

from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor

from storage.errors import CheckpointError
from storage.inventory import INDEX_SUFFIX
from storage.manifest import require_file_name

INDEX_NAME: Final = f"model{INDEX_SUFFIX}"
# What Hugging Face's own libraries write, and every host of models takes.
SHARD_BYTES: Final = 5 * 10**9


def split_weights(tensors: Mapping[str, Tensor], *, shard_bytes: int) -> dict[str, list[str]]:
    """Names of ``tensors`` by file: ``model.safetensors`` alone, or shards of it in their order.

    Args:
        tensors: of a model; tied ones come into one file.
        shard_bytes: most that is in one file; a larger tensor has one of its own.

    Raises:
        ValueError: ``shard_bytes`` is not positive.
    """
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is {shard_bytes}; expected at least 1")
    split = split_torch_state_dict_into_shards(dict(tensors), max_shard_size=shard_bytes)
    # No tensor at all makes no file; readers expect one.
    return split.filename_to_tensors or {"model.safetensors": []}


def index_to_bytes(files: Mapping[str, list[str]], tensors: Mapping[str, Tensor]) -> bytes:
    """Index of ``tensors``, whose names are by the file that has them."""
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, names in files.items() for name in names},
    }
    return json.dumps(index, indent=2, sort_keys=True).encode() + b"\n"


def read_shards(
    index: bytes, read: Callable[[str], Mapping[str, Tensor]], *, source: str
) -> dict[str, Tensor]:
    """Return all tensors that ``index`` names.

    Args:
        index: content of an index.
        read: gives the tensors of a file beside it, by its name.
        source: where the index came from; only named in errors.

    Raises:
        CheckpointError: ``index`` is none, or does not say what its files hold.
    """
    weight_map = _weight_map(index, source)
    tensors: dict[str, Tensor] = {}
    for file in dict.fromkeys(weight_map.values()):
        found = read(file)
        expected = {name for name, its_file in weight_map.items() if its_file == file}
        if found.keys() != expected:
            name = min(found.keys() ^ expected)
            raise CheckpointError(
                f"{source} and {file} do not agree on the tensor {name!r}; expected the files of "
                "one model (was one of them replaced?)"
            )
        tensors |= found
    return tensors


def shard_names(index: bytes, *, source: str) -> list[str]:
    """Names of the files that ``index`` says tensors are in, in order; arguments as above.

    Raises:
        CheckpointError: ``index`` is none.
    """
    return sorted(set(_weight_map(index, source).values()))


def _weight_map(index: bytes, source: str) -> dict[str, str]:
    try:
        weight_map = json.loads(index)["weight_map"]
        files = {str(name): _require_weights_file(file) for name, file in weight_map.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(
            f"{source} is no index of safetensors files ({error}); expected a JSON object with a "
            "weight_map from tensor to the name of a .safetensors file beside it"
        ) from error
    return files


def _require_weights_file(file: object) -> str:
    if not isinstance(file, str) or not file.endswith(".safetensors"):
        raise ValueError(f"weight_map has {file!r}")
    require_file_name(file)
    return file
