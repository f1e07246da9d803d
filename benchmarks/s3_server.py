"""An S3 server for benchmarks: a process of its own on loopback, with latency, that counts.

Run as a module it serves until it is stopped; :func:`s3_server` runs it so. Every request waits for
the latency first: loopback answers within a millisecond, S3 after about thirty.
"""

import json
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

from storage.location import Location, parse_location

_CONTROL = "/_benchmark"
BUCKET = "benchmark"


class Traffic(NamedTuple):
    """What was asked for since it was last looked at."""

    requests: int
    """All of them, listings too."""
    mebibytes: float
    """Bytes of objects that were sent."""


class S3Server(NamedTuple):
    """A running server."""

    port: int

    @property
    def endpoint(self) -> str:
        """``host:port``."""
        return f"127.0.0.1:{self.port}"

    @property
    def location(self) -> Location:
        """Its bucket."""
        query = f"endpoint_override={self.endpoint}&region=us-east-1&scheme=http"
        return parse_location(f"s3://{BUCKET}?{query}")

    def traffic(self, *, latency_seconds: float) -> Traffic:
        """Traffic since the last call; from now on every request takes so much longer."""
        url = f"http://{self.endpoint}{_CONTROL}?{latency_seconds}"
        with urllib.request.urlopen(url) as answer:
            return Traffic(*json.load(answer))


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """A server with one bucket, as long as the block lasts.

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
    command = [sys.executable, "-m", "benchmarks.s3_server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            server = S3Server(int(process.stdout.readline()))
            bucket = f"http://{server.endpoint}/{BUCKET}"
            urllib.request.urlopen(urllib.request.Request(bucket, method="PUT")).close()
            yield server
        finally:
            process.terminate()


class _Counted:
    """moto's application, with a latency before and a count after every request."""

    def __init__(self) -> None:
        self._answer = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._latency_seconds = 0.0
        self._requests = 0
        self._sent_bytes = 0

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        if environ["PATH_INFO"] == _CONTROL:
            return self._control(float(environ["QUERY_STRING"]), start_response)
        time.sleep(self._latency_seconds)
        sent: list[int] = []

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            sent.extend(int(value) for name, value in headers if name.lower() == "content-length")
            return start_response(status, headers, *rest)

        body = self._answer(environ, start)
        is_object = environ["PATH_INFO"].strip("/").count("/") > 0
        with self._lock:
            self._requests += 1
            self._sent_bytes += sum(sent) if is_object else 0
        return body

    def _control(self, latency_seconds: float, start_response: Callable[..., Any]) -> list[bytes]:
        with self._lock:
            body = json.dumps([self._requests, self._sent_bytes / 2**20]).encode()
            self._latency_seconds, self._requests, self._sent_bytes = latency_seconds, 0, 0
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]


class _KeepAlive(MotoRequestHandler):
    protocol_version = "HTTP/1.1"  # as S3; otherwise every request is a new connection


def main() -> None:
    """Serve on an unused port, which is printed."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, _Counted(), threaded=True, request_handler=_KeepAlive)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
