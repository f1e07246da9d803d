"""Every file below a folder, with its size and the time it was last written.

Guarantee: one listing (on S3 a request for each thousand objects), complete or an error. Links on
disk are not followed: what they lead to is not below the folder.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage.local_files import os_errors_explained
from storage.location import Location


class Entry(NamedTuple):
    """A stored file or object, or an upload of one that was begun and not completed."""

    name: str
    """Relative to the location that was listed from."""
    size_bytes: int
    modified: float
    """When it was last written, in seconds since the epoch."""
    upload_id: str | None = None
    """Of an upload; None: the file or object is there."""


def list_entries(base: Location, folder: str) -> Iterator[Entry]:
    """Yield what is below ``folder`` of ``base``; nothing where there is no such folder.

    Args:
        base: what names are relative to.
        folder: a relative path; empty: ``base`` itself.

    Raises:
        StorageError: it cannot be listed.
    """
    return _list_local(base, folder) if base.is_local else _list_s3(base, folder)


def is_addressable(name: str) -> bool:
    """Whether an S3 location can have ``name`` in it; others' objects in a bucket need not."""
    return "?" not in name and not any(part in ("", ".", "..") for part in name.split("/"))


def _list_local(base: Location, folder: str) -> Iterator[Entry]:
    top = base.path / folder
    with os_errors_explained(top):
        for directory, _, files in os.walk(top, onerror=_raise_unless_absent):
            relative = Path(directory).relative_to(base.path)
            for file in files:
                try:
                    status = os.lstat(os.path.join(directory, file))
                except FileNotFoundError:  # a temporary file that has got its name since
                    continue
                yield Entry((relative / file).as_posix(), status.st_size, status.st_mtime)


def _raise_unless_absent(error: OSError) -> None:
    # A folder that is not there holds nothing; any other failure must not look empty.
    if not isinstance(error, FileNotFoundError):
        raise error


def _list_s3(base: Location, folder: str) -> Iterator[Entry]:
    # boto3: see open_blobs.
    from storage.s3_client import make_client
    from storage.s3_errors import s3_errors_explained

    location = base / folder if folder else base
    root, prefix = (f"{place.key}/" if place.key else "" for place in (base, location))
    with s3_errors_explained(location):
        pages = make_client(base).get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=base.bucket, Prefix=prefix):
            for item in page.get("Contents", ()):
                name = item["Key"].removeprefix(root)
                if is_addressable(name):
                    yield Entry(name, int(item["Size"]), item["LastModified"].timestamp())
