"""Uploads to S3 that were begun in several pieces and not completed: paid for, and seen by nobody.

A writer that is killed half way leaves one behind; a writer that lives is adding to its own.
"""

from collections.abc import Iterable, Iterator

from storage.errors import LocationError
from storage.listing import Entry, is_addressable
from storage.location import Location
from storage.s3_client import make_client
from storage.s3_errors import s3_errors_explained


def list_uploads(base: Location, folder: str) -> Iterator[Entry]:
    """Yield the unfinished uploads below ``folder``; the last piece is when each was modified.

    Raises:
        LocationError: these credentials may not list uploads.
    """
    location = base / folder if folder else base
    root = f"{base.key}/" if base.key else ""
    prefix = f"{location.key}/" if location.key else ""
    try:
        with s3_errors_explained(location):
            client = make_client(base)
            pages = client.get_paginator("list_multipart_uploads")
            pieces = client.get_paginator("list_parts")
            for page in pages.paginate(Bucket=base.bucket, Prefix=prefix):
                for upload in page.get("Uploads", ()):
                    address = {"Key": upload["Key"], "UploadId": upload["UploadId"]}
                    found = [
                        piece
                        for answer in pieces.paginate(Bucket=base.bucket, **address)
                        for piece in answer.get("Parts", ())
                    ]
                    times = [upload["Initiated"], *(piece["LastModified"] for piece in found)]
                    entry = Entry(
                        upload["Key"].removeprefix(root),
                        sum(int(piece["Size"]) for piece in found),
                        max(time.timestamp() for time in times),
                        upload["UploadId"],
                    )
                    if is_addressable(entry.name):
                        yield entry
    except LocationError as error:
        raise LocationError(
            f"{error} (to find unfinished uploads: also s3:ListBucketMultipartUploads and"
            " s3:ListMultipartUploadParts)"
        ) from error


def abort_uploads(base: Location, uploads: Iterable[Entry]) -> None:
    """Abort ``uploads``, which frees what was uploaded; one that is gone is no error."""
    with s3_errors_explained(base):
        client = make_client(base)
        for upload in uploads:
            try:
                client.abort_multipart_upload(
                    Bucket=base.bucket, Key=(base / upload.name).key, UploadId=upload.upload_id
                )
            except client.exceptions.NoSuchUpload:
                continue
