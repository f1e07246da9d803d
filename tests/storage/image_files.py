"""Tiny encoded images and Parquet files to read back."""

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, *, size: int = 4) -> Image.Image:
    """Number ``number`` of many different RGB images."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def to_bytes(image: Image.Image, file_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def pngs(num_images: int) -> list[bytes]:
    return [to_bytes(picture(number)) for number in range(num_images)]


def pixels_of(image: Image.Image) -> np.ndarray:
    """``(3, H, W)`` uint8, as a dataset returns it."""
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def parquet_bytes(
    images: Sequence[bytes | None],
    labels: object,
    *,
    class_names: Sequence[str] | None = None,
    image_column: str = "image",
    label_column: str = "label",
    is_plain: bool = False,
    index: Sequence[int] | None = None,
    rows_per_group: int = 3,
    carried: Mapping[str, object] | None = None,
    features: Mapping[str, object] | None = None,
    paths: Sequence[str | None] | None = None,
) -> bytes:
    """A Parquet file as Hugging Face ``datasets`` writes it."""
    paths = ["not-followed.png"] * len(images) if paths is None else paths
    structs = [{"bytes": i, "path": path} for i, path in zip(images, paths, strict=True)]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array(images, pa.binary()) if is_plain else pa.array(structs, struct)
    columns = {image_column: column, label_column: labels}
    columns |= {"wide": ["x"] * len(images)} if carried is None else dict(carried)
    if index is not None:
        columns["index"] = pa.array(index, pa.int64())
    table = pa.table(columns)
    if class_names is not None:
        features = {
            image_column: {"_type": "Image"},
            label_column: {"_type": "ClassLabel", "names": list(class_names)},
            **(features or {}),
        }
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(metadata)
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=rows_per_group)
    return sink.getvalue()
