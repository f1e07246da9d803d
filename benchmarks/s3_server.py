"""An S3 server for benchmarks: moto's, in a process of its own, on this machine only."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from botocore.exceptions import BotoCoreError

BUCKET = "benchmarks"


@contextmanager
def s3_server() -> Iterator[str]:
    """``host:port`` of an S3 server with an empty bucket, as long as the block lasts.

    The environment gets credentials for it, and loses whatever else it says of S3.
    """
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **quiet) as server:  # type: ignore[call-overload]
        try:
            _wait_until_ready(f"http://127.0.0.1:{port}")
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def _wait_until_ready(url: str) -> None:
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
    for _ in range(60):
        try:
            client.create_bucket(Bucket=BUCKET)
        except BotoCoreError:
            time.sleep(0.5)
        else:
            return
    raise RuntimeError(f"{url} does not answer; expected moto's server (is moto installed?)")
