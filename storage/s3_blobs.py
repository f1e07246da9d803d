"""Blobs on S3, or on a store that speaks its protocol.

Guarantee: as for every blob store. S3 shows an object only once it is complete, and
``If-None-Match: *`` lets exactly one of several writers create it.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

import io
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from storage.errors import AlreadyCommittedError, LocationError
from storage.local_files import complete_temp_file, os_errors_explained
from storage.location import Location
from storage.s3_client import encryption, is_aws, make_client
from storage.s3_errors import blob_missing, error_code, s3_errors_explained
from storage.s3_ranges import RangedReader
from storage.s3_retries import one_deadline, run, total_seconds
from storage.s3_transfers import PARALLEL, download, upload

_T = TypeVar("_T")
# As bytes a body has to go out within one timeout, as a file each of its pieces has.
_FILE_BYTES: Final = 2**20
_WRITER: Final = "ringfence-writer"
_EXISTS: Final = ("PreconditionFailed", "412")


class S3Blobs:
    """Blobs as objects below one key prefix. Safe to share between threads."""

    def __init__(self, location: Location, *, transfers: TransferConfig = PARALLEL) -> None:
        """Keep blobs below ``location``, with credentials from the usual AWS chain.

        Args:
            location: one on S3.
            transfers: from which size on blobs go in parts, of which size, over how many
                connections.

        Raises:
            LocationError: the AWS profile, region or endpoint that the environment names cannot be.
        """
        self._location = location
        self._transfers = transfers
        self._seconds = total_seconds()
        with s3_errors_explained(location):
            self._client = make_client(location)
        self._is_aws = is_aws(self._client.meta.endpoint_url)
        self._encryption = encryption(location)

    def put(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put`. Large blobs go up in parts, over several connections."""
        target = self._location / name
        if len(data) > self._transfers.multipart_threshold:
            self._upload(io.BytesIO(data), target)
        else:
            self._ask(target, lambda: self._put_object(target, data))

    def put_file(self, name: str, path: Path) -> None:
        """See :meth:`BlobStore.put_file`."""
        with os_errors_explained(path):
            self._upload(path, self._location / name)

    def put_if_absent(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put_if_absent`."""
        target, writer = self._location / name, uuid.uuid4().hex
        with one_deadline(self._seconds):
            # A write whose answer was lost is sent again, and then meets itself.
            if not self._create(target, data, writer) and self._writer(target) != writer:
                raise AlreadyCommittedError(
                    f"{target} already exists and is never overwritten; expected an unused name"
                )
            # Some stores take the condition and ignore it, which would let a rival overwrite what
            # is committed. Creating it again must fail; if not, it has changed nothing.
            if not self._is_aws and self._create(target, data, writer):
                raise LocationError(
                    f"{target} is in a store that ignores If-None-Match, so nothing there is safe"
                    " from being overwritten; expected one with conditional writes, as AWS has"
                )

    def get(self, name: str) -> bytes:
        """See :meth:`BlobStore.get`."""
        target = self._location / name

        def fetch() -> bytes | None:
            answer = self._client.get_object(Bucket=target.bucket, Key=target.key)
            if answer["ContentLength"] > self._transfers.multipart_threshold:
                answer["Body"].close()
                return None
            return _body(answer)

        data = self._ask(target, fetch)
        if data is None:
            buffer = io.BytesIO()
            self._download(target, buffer)
            data = buffer.getvalue()
        return data

    def get_file(self, name: str, path: Path) -> None:
        """See :meth:`BlobStore.get_file`."""
        target = self._location / name
        with (
            os_errors_explained(path),
            complete_temp_file(path, lambda file: self._download(target, file)) as temp,
        ):
            temp.replace(path)

    def open(self, name: str) -> BinaryIO:
        """See :meth:`BlobStore.open`. Every read is one request for exactly that range."""
        target = self._location / name
        size_bytes = self._size(target)
        if size_bytes is None:
            raise blob_missing(target)

        def fetch_range(start: int, stop: int) -> bytes:
            bounds = f"bytes={start}-{stop - 1}"
            return self._ask(
                target,
                lambda: _body(
                    self._client.get_object(Bucket=target.bucket, Key=target.key, Range=bounds)
                ),
            )

        return RangedReader(fetch_range, size_bytes)  # type: ignore[return-value]  # RawIOBase

    def exists(self, name: str) -> bool:
        """See :meth:`BlobStore.exists`."""
        return self._size(self._location / name) is not None

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`BlobStore.list`."""
        root = f"{self._location.key}/" if self._location.key else ""
        names: list[str] = []
        after: dict[str, str] = {}
        while True:
            page = self._list_page(self._location, root + prefix, **after)
            names += [item["Key"].removeprefix(root) for item in page.get("Contents", ())]
            if not page.get("IsTruncated"):
                break
            after = {"ContinuationToken": page["NextContinuationToken"]}
        # Keys that end in "/" are the folder marks of some browsers, not blobs.
        return sorted(name for name in names if name and not name.endswith("/"))

    def delete(self, name: str) -> None:
        """See :meth:`BlobStore.delete`."""
        target = self._location / name
        self._ask(target, lambda: self._client.delete_object(Bucket=target.bucket, Key=target.key))

    def _ask(self, target: Location, action: Callable[[], _T]) -> _T:
        with s3_errors_explained(target):
            return run(action, seconds=self._seconds)

    def _put_object(self, target: Location, data: bytes, **arguments: object) -> None:
        body = data if len(data) < _FILE_BYTES else io.BytesIO(data)
        self._client.put_object(
            Bucket=target.bucket, Key=target.key, Body=body, **self._encryption, **arguments
        )

    def _create(self, target: Location, data: bytes, writer: str) -> bool:
        """Whether ``target`` did not exist and now has ``data``."""

        def create() -> bool:
            try:
                self._put_object(target, data, IfNoneMatch="*", Metadata={_WRITER: writer})
            except ClientError as error:
                if error_code(error) in _EXISTS:
                    return False
                raise
            return True

        return self._ask(target, create)

    def _writer(self, target: Location) -> str | None:
        """Who created ``target``."""
        answer = self._ask(
            target, lambda: self._client.head_object(Bucket=target.bucket, Key=target.key)
        )
        # Some stores give such names back with capitals.
        metadata: dict[str, str] = {k.lower(): v for k, v in answer["Metadata"].items()}
        return metadata.get(_WRITER)

    def _upload(self, source: Path | io.BytesIO, target: Location) -> None:
        with s3_errors_explained(target):
            upload(self._client, source, target, arguments=self._encryption, config=self._transfers)

    def _download(self, target: Location, file: BinaryIO) -> None:
        with s3_errors_explained(target):
            try:
                download(self._client, target, file, config=self._transfers)
            except ClientError as error:
                if error_code(error) == "404":
                    # HEAD, as the transfer manager sends it, does not tell a missing key from a
                    # missing bucket; this raises for the latter.
                    self._size(target)
                raise

    def _size(self, target: Location) -> int | None:
        # A listing rather than HEAD, for the same reason. Keys come in byte order, so the key
        # itself is the first that starts with it.
        page = self._list_page(target, target.key, MaxKeys=1)
        sizes = [int(i["Size"]) for i in page.get("Contents", ()) if i["Key"] == target.key]
        return sizes[0] if sizes else None

    def _list_page(self, target: Location, prefix: str, **arguments: object) -> dict[str, Any]:
        def list_page() -> dict[str, Any]:
            page: dict[str, Any] = self._client.list_objects_v2(
                Bucket=target.bucket, Prefix=prefix, **arguments
            )
            if "IsTruncated" not in page:  # a web page reads as a list of nothing
                raise ResponseParserError
            return page

        return self._ask(target, list_page)


def _body(answer: dict[str, Any]) -> bytes:
    # Not `with`, which yields the raw stream: that one takes a body cut short for a whole one.
    body = answer["Body"]
    try:
        return bytes(body.read())
    finally:
        body.close()
