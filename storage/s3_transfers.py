"""Large blobs: in parts, over several connections, without being in memory as a whole.

Guarantee: an upload becomes visible when all its parts are there; one that fails is aborted, so
that its parts cost nothing. If even that request is lost, or the uploader dies, they stay until a
lifecycle rule of the bucket removes them (``AbortIncompleteMultipartUpload``).
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from boto3.s3.transfer import TransferConfig, create_transfer_manager

from storage.location import Location
from storage.s3_retries import run_transfer

# Above the threshold several connections beat one: S3 gives each about 80 MB/s.
PARALLEL: Final = TransferConfig(
    multipart_threshold=32 * 2**20,
    multipart_chunksize=16 * 2**20,
    max_concurrency=8,
    # Not the C library that boto3 would choose on some machines: it knows neither the checksums nor
    # the retries that the client was given.
    preferred_transfer_client="classic",
)


def upload(
    client: Any,
    source: Path | io.BytesIO,
    target: Location,
    *,
    arguments: Mapping[str, str],
    config: TransferConfig,
) -> None:
    """Store what is in ``source`` as ``target``, with the ``arguments`` of every write there."""

    def attempt() -> None:
        start: str | io.BytesIO = str(source) if isinstance(source, Path) else source
        if isinstance(start, io.BytesIO):
            start.seek(0)
        with create_transfer_manager(client, config) as manager:
            manager.upload(start, target.bucket, target.key, extra_args=dict(arguments)).result()

    run_transfer(attempt)


def download(client: Any, source: Location, file: BinaryIO, *, config: TransferConfig) -> None:
    """Write what is stored as ``source`` to ``file``, which is open for writing and seeking."""

    def attempt() -> None:
        file.seek(0)
        file.truncate()
        with create_transfer_manager(client, config) as manager:
            manager.download(source.bucket, source.key, file).result()

    run_transfer(attempt)
