"""Which columns of a Parquet file hold the images, the labels and the class names.

Follows what Hugging Face ``datasets`` writes: column types under the schema's metadata key
``huggingface``. Files without that metadata are read by the usual column names.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from storage.errors import DatasetError

_IMAGE_COLUMNS: Final = ("image", "img")
_LABEL_COLUMNS: Final = ("label", "labels", "fine_label")
_INDEX_COLUMN: Final = "index"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where in a Parquet file to find what."""

    image: str
    """Column of encoded images; ends in ``.bytes`` where images are structs."""
    label: str
    """Column of class numbers."""
    index: str | None
    """Column that binds each row to the image it was made from; ``None`` where there is none."""
    class_names: list[str] | None
    """Names of the classes by number; ``None`` where the file has none."""


def find_columns(schema: pa.Schema, *, name: str) -> Columns:
    """Return the columns of a file with this schema.

    Args:
        schema: of the whole file.
        name: what errors call the file.

    Raises:
        DatasetError: there is no column of images or of labels, or it has an unusable type.
    """
    features = _features(schema)
    image = _pick(schema, _IMAGE_COLUMNS, _of_type(features, "Image"))
    label = _pick(schema, _LABEL_COLUMNS, _of_type(features, "ClassLabel"))
    if image is None or label is None:
        raise DatasetError(
            f"{name} has the columns {', '.join(schema.names) or '(none)'}; expected one of"
            f" {', '.join(_IMAGE_COLUMNS)} and one of {', '.join(_LABEL_COLUMNS)}"
        )
    kind, path = schema.field(image).type, image
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        # Only this leaf is read; the path beside it would be read for nothing.
        kind, path = kind.field("bytes").type, f"{image}.bytes"
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DatasetError(
            f"{name} has {image} of type {kind}; expected encoded images, as binary or as"
            " struct<bytes: binary, path: string>"
        )
    class_names = features.get(label, {}).get("names")
    return Columns(
        image=path,
        label=label,
        index=_INDEX_COLUMN if _has_index(schema) else None,
        class_names=list(map(str, class_names)) if isinstance(class_names, list) else None,
    )


def _has_index(schema: pa.Schema) -> bool:
    # A column of that name with anything but integers is somebody else's.
    return _INDEX_COLUMN in schema.names and pa.types.is_integer(schema.field(_INDEX_COLUMN).type)


def _features(schema: pa.Schema) -> dict[str, dict[str, object]]:
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # other writers; the columns' names and types decide


def _of_type(features: Mapping[str, Mapping[str, object]], kind: str) -> list[str]:
    return [name for name, feature in features.items() if feature.get("_type") == kind]


def _pick(schema: pa.Schema, usual: Sequence[str], declared: Sequence[str]) -> str | None:
    """A usual name if there is one, else the only column that is declared to be of that kind."""
    for name in usual:
        if name in schema.names:
            return name
    return declared[0] if len(declared) == 1 and declared[0] in schema.names else None
