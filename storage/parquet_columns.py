"""Which columns of a Parquet file hold the images, the labels and the class names.

Follows what Hugging Face ``datasets`` writes: what each column means, its *feature*, under the
schema's metadata key ``huggingface``. Files without it are read by the usual column names. All
other columns are *carried*: nothing here looks into them, and they stay with their rows.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from storage.errors import DatasetError

# What the columns are called in every dataset that is written here.
IMAGE_COLUMN: Final = "image"
LABEL_COLUMN: Final = "label"
INDEX_COLUMN: Final = "index"
WRITTEN_COLUMNS: Final = (IMAGE_COLUMN, LABEL_COLUMN, INDEX_COLUMN)

_IMAGE_COLUMNS: Final = (IMAGE_COLUMN, "img")
_LABEL_COLUMNS: Final = (LABEL_COLUMN, "labels", "fine_label")
_METADATA_KEY: Final = b"huggingface"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where in a Parquet file to find what."""

    image: str
    """Column of encoded images; ends in ``.bytes`` where images are structs."""
    path: str | None
    """Column of the images' own names; ``None`` where there is none."""
    label: str
    """Column of class numbers."""
    index: str | None
    """Column that binds each row to the image it was made from; ``None`` where there is none."""
    class_names: list[str] | None
    """Names of the classes by number; ``None`` where the file has none."""
    carried: pa.Schema
    """All other columns in the order of the file, with their features."""


def find_columns(schema: pa.Schema, *, name: str) -> Columns:
    """Return the columns of a file with this schema.

    Args:
        schema: of the whole file.
        name: what errors call the file.

    Raises:
        DatasetError: there is no column of images or of labels, or it has an unusable type.
    """
    features = features_of(schema)
    image = _pick(schema, _IMAGE_COLUMNS, _of_type(features, "Image"))
    label = _pick(schema, _LABEL_COLUMNS, _of_type(features, "ClassLabel"))
    if image is None or label is None:
        raise DatasetError(
            f"{name} has the columns {', '.join(schema.names) or '(none)'}; expected one of"
            f" {', '.join(_IMAGE_COLUMNS)} and one of {', '.join(_LABEL_COLUMNS)}"
        )
    kind, data, path = schema.field(image).type, image, None
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        # Only the leaf that is asked for is read, not the whole struct.
        path = f"{image}.path" if kind.get_field_index("path") >= 0 else None
        kind, data = kind.field("bytes").type, f"{image}.bytes"
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DatasetError(
            f"{name} has {image} of type {kind}; expected encoded images, as binary or as"
            " struct<bytes: binary, path: string>"
        )
    index = INDEX_COLUMN if _has_index(schema) else None
    fields = [field for field in schema if field.name not in (image, label, index)]
    return Columns(
        image=data,
        path=path,
        label=label,
        index=index,
        class_names=_class_names(features.get(label)),
        carried=with_features(pa.schema(fields), features),
    )


def common_columns(carried: Sequence[tuple[str, pa.Schema]]) -> pa.Schema:
    """Return the carried columns of several files that belong together.

    Args:
        carried: for each file what errors call it, and its :attr:`Columns.carried`; the order
            of the columns is that of the first.

    Raises:
        DatasetError: the files differ in them, or a name is one that a written dataset uses.
    """
    first_name, first = carried[0]
    described = _described(first)
    for name, schema in carried[1:]:
        other = _described(schema)
        for column in described | other:
            if described.get(column) != other.get(column):
                raise DatasetError(
                    f"{name} has column {column!r} as {other.get(column)}, but {first_name} has it"
                    f" as {described.get(column)}; expected the files of one dataset"
                    " (name one file, or use a pattern)"
                )
    if taken := [column for column in first.names if column in WRITTEN_COLUMNS]:
        raise DatasetError(
            f"{first_name} has a column {taken[0]!r} of type {first.field(taken[0]).type}, the"
            f" name that the {taken[0]} column gets in what is written; expected another name"
            " (rename it)"
        )
    return first


def features_of(schema: pa.Schema) -> dict[str, object]:
    """Return the feature of each column that has one, as ``datasets``' ``Features.from_dict``."""
    try:
        features = json.loads((schema.metadata or {})[_METADATA_KEY])["info"]["features"]
        return dict(features.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # other writers; the columns' names and types decide


def with_features(schema: pa.Schema, features: Mapping[str, object]) -> pa.Schema:
    """Return ``schema`` with these features of its columns, and no other metadata."""
    kept = {name: features[name] for name in schema.names if name in features}
    document = json.dumps({"info": {"features": kept}})
    return schema.with_metadata({_METADATA_KEY: document.encode()} if kept else {})


def _described(schema: pa.Schema) -> dict[str, str]:
    features = features_of(schema)
    return {
        field.name: f"{field.type}{'' if field.nullable else ' not null'}"
        f" {features.get(field.name, '')}".rstrip()
        for field in schema
    }


def _class_names(feature: object) -> list[str] | None:
    names = feature.get("names") if isinstance(feature, dict) else None
    return list(map(str, names)) if isinstance(names, list) else None


def _has_index(schema: pa.Schema) -> bool:
    # A column of that name with anything but integers is somebody else's.
    return INDEX_COLUMN in schema.names and pa.types.is_integer(schema.field(INDEX_COLUMN).type)


def _of_type(features: Mapping[str, object], kind: str) -> list[str]:
    return [
        name
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == kind
    ]


def _pick(schema: pa.Schema, usual: Sequence[str], declared: Sequence[str]) -> str | None:
    """A usual name if there is one, else the only column that is declared to be of that kind."""
    for name in usual:
        if name in schema.names:
            return name
    return declared[0] if len(declared) == 1 and declared[0] in schema.names else None
