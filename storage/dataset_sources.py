"""Which kind of dataset a text names, and the source that reads it.

Guarantee: a name that leads nowhere is an error that lists what is accepted and the nearest name
that exists; a folder is never quietly read as less or more than one dataset.
"""

import difflib
import fnmatch
import re
from collections.abc import Sequence
from typing import Final

from storage.blobs import BlobStore, open_blobs
from storage.cache import CachedParts
from storage.commit import check_part, read_manifest
from storage.errors import DatasetError
from storage.image_sources import FolderImages, ImageSource
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME
from storage.named_images import (
    DIGITS,
    TORCHVISION_PREFIX,
    open_digits,
    open_torchvision,
    torchvision_names,
)
from storage.parquet_images import ParquetImages
from storage.photographs import PHOTOGRAPHS, open_photographs

ACCEPTED: Final = (
    "expected a Parquet file, a folder of *.parquet, a folder of class folders, a committed"
    " dataset, any of these on s3://, torchvision/NAME:SPLIT, digits:SPLIT or photographs:SPLIT"
)
_PARQUET: Final = (".parquet", ".pq")
_SPLITS: Final = {"train", "test", "validation", "valid", "val", "dev", "eval"}


def open_source(source: str, *, download: bool, root: str | None, cache_bytes: int) -> ImageSource:
    """Return the labelled images that ``source`` names.

    Args:
        source: see :func:`storage.datasets.open_dataset`, as for the other arguments.
        download: only for torchvision.
        root: only for torchvision.
        cache_bytes: only for Parquet.

    Raises:
        DatasetError: there is no such dataset, or something in it is not usable.
        ValueError: ``download`` or ``root`` is given where it would be ignored.
    """
    if source.startswith(TORCHVISION_PREFIX):
        return open_torchvision(source, download=download, root=root)
    if download or root is not None:
        raise ValueError(
            f"dataset is {source!r} with download {download} and root {root!r}, which only"
            " torchvision/NAME:SPLIT uses; expected neither"
        )
    if source in DIGITS:
        return open_digits(source)
    if source in PHOTOGRAPHS:
        return open_photographs(source)
    location = parse_location(source)
    folder = location.parent
    if "*" in location.name:
        blobs = open_blobs(folder)
        names = fnmatch.filter(_parquet_files(blobs.list()), location.name)
        if not names:
            raise _unknown(source, location)
        return _parquet(folder, blobs, names, cache_bytes=cache_bytes)
    # Asked rather than assumed: Spark names folders of Parquet files data.parquet, too.
    if location.name.endswith(_PARQUET) and (blobs := open_blobs(folder)).exists(location.name):
        return ParquetImages(folder, blobs, [location.name], cache_bytes=cache_bytes)
    return _folder(source, location, cache_bytes=cache_bytes)


def _folder(source: str, location: Location, *, cache_bytes: int) -> ImageSource:
    if location.is_local and not location.path.is_dir():
        raise _unknown(source, location)
    blobs = open_blobs(location)
    if blobs.exists(MANIFEST_NAME):
        return _committed(location, blobs, cache_bytes=cache_bytes)
    names = blobs.list()
    if not names and not location.is_local:
        raise _unknown(source, location)
    if files := _parquet_files(names):
        return _parquet(location, blobs, files, cache_bytes=cache_bytes)
    return FolderImages(location, blobs, names)


def _committed(location: Location, blobs: BlobStore, *, cache_bytes: int) -> ParquetImages:
    manifest = read_manifest(location)
    names = [name for name in sorted(manifest.parts) if name.endswith(_PARQUET)]
    if not names:
        raise DatasetError(
            f"{location} is a committed {manifest.kind} with the parts"
            f" {', '.join(sorted(manifest.parts)) or '(none)'}; expected *.parquet among them"
        )
    paths = [manifest.parts[name].path for name in names]
    if not location.is_local:
        files = CachedParts(location, manifest, names, blobs=blobs)
        return ParquetImages(location, files, paths, cache_bytes=cache_bytes)
    # Rows are read piece by piece later on, so this is the moment to check the whole.
    for name in names:
        check_part(location, name, manifest=manifest)
    return ParquetImages(location, blobs, paths, cache_bytes=cache_bytes)


def _parquet(
    location: Location, blobs: BlobStore, names: Sequence[str], *, cache_bytes: int
) -> ParquetImages:
    words = {word for name in names for word in re.split(r"[-_.]", name.lower())}
    if len(splits := sorted(words & _SPLITS)) > 1:
        # Training on the test images is the mistake that nothing later would show.
        raise DatasetError(
            f"{location} holds files of several splits ({', '.join(splits)}); expected one split"
            f" (did you mean {location / f'*{splits[-1]}*.parquet'}?)"
        )
    return ParquetImages(location, blobs, names, cache_bytes=cache_bytes)


def _parquet_files(names: Sequence[str]) -> list[str]:
    return [name for name in names if "/" not in name and name.endswith(_PARQUET)]


def _unknown(source: str, location: Location) -> DatasetError:
    is_file = location.is_local and location.path.is_file()
    what = "is a file of another kind" if is_file else "does not exist"
    candidates = {name: name for name in (*DIGITS, *PHOTOGRAPHS)}
    candidates |= {n.lower(): f"{TORCHVISION_PREFIX}{n}:train" for n in torchvision_names()}
    if location.is_local and location.path.parent.is_dir():
        candidates |= {p.name.lower(): str(p) for p in location.path.parent.iterdir()}
    close = difflib.get_close_matches(location.name.lower(), candidates, n=1)
    hint = f" (did you mean {candidates[close[0]]}?)" if close and not is_file else ""
    return DatasetError(f"dataset is {source!r}, which {what}; {ACCEPTED}{hint}")
