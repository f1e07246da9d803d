"""Connecting to S3, or to a store that speaks its protocol, as an address and the environment say.

Guarantee: credentials come only from where AWS's own tools take them, never from an address; and
what is uploaded is refused by the store if it was damaged on its way.
"""

import functools
import os
from typing import Any, Final
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader, create_loader

from storage.errors import LocationError
from storage.location import Location
from storage.s3_retries import attach, total_seconds

# A quarter of the whole time at most, so that a request that stalls is tried several times; but
# below two seconds a store that is only busy would seem dead.
_STALL_SHARE: Final = 0.25
_SHORTEST_STALL_SECONDS: Final = 2.0
_LONGEST_CONNECT_SECONDS: Final = 10.0
_LONGEST_STALL_SECONDS: Final = 30.0
# A few threads with a transfer each; what is above is not refused, but connects every time.
_CONNECTIONS: Final = 32


def make_client(location: Location):  # type: ignore[no-untyped-def]  # boto3 makes its classes
    """Return a boto3 client for the store that ``location`` names.

    Credentials, and whatever else the address leaves open, come from the usual AWS chain.

    Raises:
        LocationError: the endpoint is no plain URL, or RINGFENCE_S3_TOTAL_SECONDS no number.
    """
    seconds = total_seconds()
    try:
        client = _make_client(location, seconds=seconds)
        endpoint = urlsplit(client.meta.endpoint_url)
        is_plain = endpoint.port != 0 and not ("@" in endpoint.netloc or endpoint.query)
    except ValueError:  # of botocore for what is no URL, of Python for a port that is no number
        is_plain = False
    if not is_plain:  # outside of the block: botocore's error repeats the URL, secrets and all
        raise LocationError(
            f"{location} has an endpoint that is no plain URL; expected http[s]://host[:port],"
            " with credentials in variables or profile of their own (check AWS_ENDPOINT_URL_S3)"
        )
    attach(client, seconds=seconds)
    return client


def is_aws(endpoint_url: str) -> bool:
    """Whether ``endpoint_url`` is Amazon's own S3 rather than a store compatible with it."""
    return ".amazonaws.com" in (urlsplit(endpoint_url).hostname or "")


def encryption(location: Location) -> dict[str, str]:
    """The arguments that every request takes which writes to ``location``."""
    arguments = {
        "ServerSideEncryption": location.server_side_encryption,
        "SSEKMSKeyId": location.kms_key_id,
    }
    return {name: value for name, value in arguments.items() if value is not None}


def _make_client(location: Location, *, seconds: float) -> Any:
    # A session of its own, so that credentials are looked up as they are now.
    core = botocore.session.get_session()
    core.register_component("data_loader", _service_descriptions())
    session = boto3.session.Session(botocore_session=core)
    stall_seconds = max(_SHORTEST_STALL_SECONDS, _STALL_SHARE * seconds)
    options = {
        "retries": {"mode": "standard", "total_max_attempts": 1},  # s3_retries has its own
        "connect_timeout": min(stall_seconds, _LONGEST_CONNECT_SECONDS),
        "read_timeout": min(stall_seconds, _LONGEST_STALL_SECONDS),
        "max_pool_connections": _CONNECTIONS,
    }
    endpoint = location.endpoint_url
    if endpoint is None or is_aws(endpoint):
        # Each request carries the CRC-32 of its body, and the last of an upload that of all parts.
        checked = Config(
            **options,
            request_checksum_calculation="when_supported",
            response_checksum_validation="when_supported",
        )
        client = session.client(
            "s3", config=checked, endpoint_url=endpoint, region_name=location.region
        )
        if is_aws(client.meta.endpoint_url):
            return client
    # Other stores seldom have a host name per bucket, and some know no such checksums: who has one
    # that does may say so, as for AWS's own tools. All of them check a signature, however, so the
    # SHA-256 of each body goes into it.
    wanted = os.environ.get("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    compatible = Config(
        **options,
        s3={"addressing_style": "path", "payload_signing_enabled": True},
        request_checksum_calculation=wanted,
        response_checksum_validation=wanted,
    )
    # Many know no regions either, yet a request cannot be signed without one.
    region = location.region or session.region_name or "us-east-1"
    return session.client("s3", config=compatible, endpoint_url=endpoint, region_name=region)


@functools.cache
def _service_descriptions() -> Loader:
    """What botocore knows about the S3 API, whose parsing is nine tenths of making a client."""
    return create_loader()
