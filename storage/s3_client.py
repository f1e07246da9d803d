"""Connecting to S3, or to a store that speaks its protocol, as an address and the environment say.

Guarantee: credentials come only from where AWS's own tools take them, never from an address.
"""

import functools
from urllib.parse import urlsplit

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader, create_loader

from storage.location import Location


def make_client(location: Location):  # type: ignore[no-untyped-def]  # boto3 makes its classes
    """Return a boto3 client for the store that ``location`` names.

    Credentials, and whatever else the address leaves open, come from the usual AWS chain.
    """
    # A session of its own, so that credentials are looked up as they are now.
    core = botocore.session.get_session()
    core.register_component("data_loader", _service_descriptions())
    session = boto3.session.Session(botocore_session=core)
    # Standard mode: exponential backoff with jitter over a fixed list of transient errors.
    options = {"retries": {"mode": "standard", "max_attempts": 5}, "connect_timeout": 10}
    address = {"endpoint_url": location.endpoint_url, "region_name": location.region}
    client = session.client("s3", config=Config(**options), **address)
    if is_aws(client.meta.endpoint_url):
        return client
    # Other stores seldom have a host name per bucket, and some know no trailing checksums.
    compatible = Config(
        **options,
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    # Many know no regions either, yet a request cannot be signed without one.
    region = client.meta.region_name or "us-east-1"
    return session.client("s3", config=compatible, **{**address, "region_name": region})


def is_aws(endpoint_url: str) -> bool:
    """Whether ``endpoint_url`` is Amazon's own S3 rather than a store compatible with it."""
    return ".amazonaws.com" in (urlsplit(endpoint_url).hostname or "")


@functools.cache
def _service_descriptions() -> Loader:
    """What botocore knows about the S3 API, whose parsing is nine tenths of making a client."""
    return create_loader()
