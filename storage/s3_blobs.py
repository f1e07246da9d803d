"""Blobs on S3, or on a store that speaks its protocol.

Guarantee: as for every blob store. S3 shows an object only once it is complete, and
``If-None-Match: *`` lets exactly one of several writers create it.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

import io
import time
from collections.abc import Callable
from typing import BinaryIO, Final

from boto3.s3.transfer import TransferConfig
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from storage.errors import AlreadyCommittedError, BlobMissingError, LocationError
from storage.location import Location
from storage.s3_client import is_aws, make_client
from storage.s3_errors import error_code, s3_errors_explained

# Above this, several connections beat one: S3 gives each about 80 MB/s.
_PARALLEL_BYTES: Final = 32 * 2**20
_TRANSFER: Final = TransferConfig(
    multipart_threshold=_PARALLEL_BYTES, multipart_chunksize=16 * 2**20, max_concurrency=8
)
# 409 means that another request on the same key is in flight; it is over within a second or two.
_CONFLICT: Final = ("ConditionalRequestConflict", "409")
_CONFLICT_WAITS_SECONDS: Final = (0.1, 0.3, 1.0, 3.0)
# botocore retries a request but not a body that breaks off while it is being read.
_BODY_ATTEMPTS: Final = 4
_BROKEN_BODY: Final = (
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
    ConnectionClosedError,
)


class S3Blobs:
    """Blobs as objects below one key prefix. Safe to share between threads."""

    def __init__(self, location: Location) -> None:
        """Keep blobs below ``location``, with credentials from the usual AWS chain.

        Raises:
            LocationError: the AWS profile or region that the environment names does not exist.
        """
        self._location = location
        with s3_errors_explained(location):
            self._client = make_client(location)
        self._is_aws = is_aws(self._client.meta.endpoint_url)

    def put(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put`. Large blobs go up in parts, over several connections."""
        target = self._location / name
        with s3_errors_explained(target):
            if len(data) <= _PARALLEL_BYTES:
                self._client.put_object(Bucket=target.bucket, Key=target.key, Body=data)
            else:
                body = io.BytesIO(data)
                self._client.upload_fileobj(body, target.bucket, target.key, Config=_TRANSFER)

    def put_if_absent(self, name: str, data: bytes) -> None:
        """See :meth:`BlobStore.put_if_absent`."""
        target = self._location / name
        if not self._create(target, data):
            raise AlreadyCommittedError(
                f"{target} already exists and is never overwritten; expected an unused name"
            )
        # Some stores take the condition and ignore it, which would let a rival overwrite what is
        # committed. Creating it a second time must fail; if not, it has changed nothing.
        if not self._is_aws and self._create(target, data):
            raise LocationError(
                f"{target} is in a store that ignores If-None-Match, so nothing there is safe from"
                " being overwritten; expected a store with conditional writes, as AWS has"
            )

    def _create(self, target: Location, data: bytes) -> bool:
        """Whether ``target`` did not exist and now has ``data``."""
        with s3_errors_explained(target):
            for wait_seconds in (*_CONFLICT_WAITS_SECONDS, None):
                try:
                    self._client.put_object(
                        Bucket=target.bucket, Key=target.key, Body=data, IfNoneMatch="*"
                    )
                except ClientError as error:
                    if error_code(error) in ("PreconditionFailed", "412"):
                        return False
                    if error_code(error) not in _CONFLICT or wait_seconds is None:
                        raise
                    time.sleep(wait_seconds)
                else:
                    return True
        raise AssertionError("the last attempt returns or raises")

    def get(self, name: str) -> bytes:
        """See :meth:`BlobStore.get`."""
        target = self._location / name

        def fetch() -> bytes:
            answer = self._client.get_object(Bucket=target.bucket, Key=target.key)
            with answer["Body"] as body:
                if answer["ContentLength"] <= _PARALLEL_BYTES:
                    return bytes(body.read())
            buffer = io.BytesIO()
            self._client.download_fileobj(target.bucket, target.key, buffer, Config=_TRANSFER)
            return buffer.getvalue()

        return _read(fetch, target)

    def open(self, name: str) -> BinaryIO:
        """See :meth:`BlobStore.open`. Every read is one request for exactly that range."""
        target = self._location / name
        size_bytes = self._size(target)
        if size_bytes is None:
            raise _missing(target)

        def fetch_range(start: int, stop: int) -> bytes:
            def fetch() -> bytes:
                answer = self._client.get_object(
                    Bucket=target.bucket, Key=target.key, Range=f"bytes={start}-{stop - 1}"
                )
                with answer["Body"] as body:
                    return bytes(body.read())

            return _read(fetch, target)

        return _RangedReader(fetch_range, size_bytes)  # type: ignore[return-value]  # RawIOBase

    def exists(self, name: str) -> bool:
        """See :meth:`BlobStore.exists`."""
        return self._size(self._location / name) is not None

    def list(self, prefix: str = "") -> list[str]:
        """See :meth:`BlobStore.list`."""
        root = f"{self._location.key}/" if self._location.key else ""
        pages = self._client.get_paginator("list_objects_v2")
        names: list[str] = []
        with s3_errors_explained(self._location):
            for page in pages.paginate(Bucket=self._location.bucket, Prefix=root + prefix):
                names += [item["Key"].removeprefix(root) for item in page.get("Contents", ())]
        # Keys that end in "/" are the folder marks of some browsers, not blobs.
        return sorted(name for name in names if name and not name.endswith("/"))

    def delete(self, name: str) -> None:
        """See :meth:`BlobStore.delete`."""
        target = self._location / name
        with s3_errors_explained(target):
            self._client.delete_object(Bucket=target.bucket, Key=target.key)

    def _size(self, target: Location) -> int | None:
        # A listing rather than HEAD, whose 404 does not tell a missing key from a missing bucket.
        # Keys come in byte order, so the key itself is the first that starts with it.
        with s3_errors_explained(target):
            page = self._client.list_objects_v2(Bucket=target.bucket, Prefix=target.key, MaxKeys=1)
        sizes = [int(i["Size"]) for i in page.get("Contents", ()) if i["Key"] == target.key]
        return sizes[0] if sizes else None


class _RangedReader(io.RawIOBase):
    """A seekable file whose bytes are fetched as they are read."""

    def __init__(self, fetch_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        super().__init__()
        self._fetch_range = fetch_range
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}
        self._position = max(0, start[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size_bytes
        if size is not None and size >= 0:
            stop = min(stop, self._position + size)
        if stop <= self._position:
            return b""
        data = self._fetch_range(self._position, stop)
        self._position += len(data)
        return data

    def readall(self) -> bytes:
        return self.read()


def _read(fetch: Callable[[], bytes], target: Location) -> bytes:
    """What ``fetch`` returns, asked again where the answer breaks off half way."""
    with s3_errors_explained(target):
        for attempt in range(1, _BODY_ATTEMPTS + 1):
            try:
                return fetch()
            except ClientError as error:
                if error_code(error) in ("NoSuchKey", "404"):
                    raise _missing(target) from error
                raise
            except _BROKEN_BODY:
                if attempt == _BODY_ATTEMPTS:
                    raise
        raise AssertionError("the last attempt returns or raises")


def _missing(target: Location) -> BlobMissingError:
    return BlobMissingError(
        f"{target} does not exist; expected an object (check the prefix and the name)"
    )
