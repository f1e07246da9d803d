import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ray_jobs.spot_notice import seconds_left


class Metadata(HTTPServer):
    """What an EC2 instance is told about itself, as far as it asks with a token."""

    action: bytes | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Metadata

    def do_PUT(self) -> None:
        asked = int(self.headers["X-aws-ec2-metadata-token-ttl-seconds"])
        self.answer(b"the token" if self.path == "/latest/api/token" and asked > 0 else None)

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "the token":
            self.send_error(401)
            return
        known = self.path == "/latest/meta-data/spot/instance-action"
        self.answer(self.server.action if known else None)

    def answer(self, body: bytes | None) -> None:
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with Metadata(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_nothing_is_planned(metadata: Metadata) -> None:
    assert seconds_left(metadata.endpoint) is None


@pytest.mark.parametrize(("in_seconds", "expected"), [(120, 120), (-5, 0)])
def test_the_notice_says_how_long_is_left(
    metadata: Metadata, in_seconds: float, expected: float
) -> None:
    goes = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=in_seconds)
    time = goes.strftime("%Y-%m-%dT%H:%M:%SZ")  # as EC2 writes it
    metadata.action = json.dumps({"action": "terminate", "time": time}).encode()
    left = seconds_left(metadata.endpoint)
    assert left == pytest.approx(expected, abs=2)


def test_a_machine_that_is_none_of_amazons_has_no_notice(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert seconds_left("http://127.0.0.1:9") is None
    assert "http://127.0.0.1:9 does not answer" in caplog.text
