"""An S3 server in this process, and an unused place to keep things in each store."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from storage.location import Location, parse_location
from tests.storage.faulty_proxy import FaultyProxy


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """``host:port`` of an S3 server that lives as long as the tests."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="key",
        aws_secret_access_key="secret",
    )
    client.create_bucket(Bucket="tests")
    client.create_bucket(Bucket="whole")
    client.put_object(Bucket="whole", Key="folder/", Body=b"")  # some browsers leave such marks
    client.close()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture
def s3_location(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Location:
    """An unused location on the S3 server, with credentials in the environment."""
    # Nothing of the machine's own AWS configuration may reach the tests, or be reached by them.
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key-of-the-tests")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-the-tests")
    query = f"endpoint_override={s3_endpoint}&region=us-east-1&scheme=http"
    return parse_location(f"s3://tests/{uuid.uuid4().hex}?{query}")


@pytest.fixture
def s3_proxy(s3_endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy in front of the S3 server, which fails as soon as a test says how."""
    with FaultyProxy(s3_endpoint) as proxy:
        yield proxy


@pytest.fixture
def proxied_location(s3_location: Location, s3_proxy: FaultyProxy) -> Location:
    """``s3_location`` as it is reached through the proxy."""
    return replace(s3_location, endpoint_override=s3_proxy.endpoint)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def location(request: pytest.FixtureRequest) -> Location:
    """An unused location; every test that takes it runs once for each store."""
    if request.param == "local":
        path: Path = request.getfixturevalue("tmp_path")
        return parse_location(path / "kept")
    s3: Location = request.getfixturevalue("s3_location")
    return s3


@pytest.fixture
def tmp_path_location(tmp_path: Path) -> Location:
    """An unused local location, for what does not depend on the store."""
    return parse_location(tmp_path / "kept")
