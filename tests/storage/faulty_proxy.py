"""A proxy in front of an S3 server that fails as real stores and networks do, reproducibly."""

import enum
import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    """With the query."""
    headers: Mapping[str, str]
    body: bytes


class Answer(NamedTuple):
    """What the proxy says by itself, without asking the server."""

    status: int
    code: str = ""
    """S3's error code; empty for an answer whose body is ``page``."""
    message: str = "words"
    page: bytes = b""
    headers: Mapping[str, str] = {}

    @property
    def body(self) -> bytes:
        if not self.code:
            return self.page
        return (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{self.code}</Code><Message>{self.message}</Message>"
            f"<Token-0>{self.message}</Token-0><RequestId>1</RequestId></Error>"
        ).encode()


class Fault(enum.Enum):
    RESET = "connection reset"
    """The server never sees the request."""
    LOST_ANSWER = "answer lost"
    """The server has carried it out, and the connection is reset."""
    STALL = "stall"
    TRUNCATED = "truncated body"
    """The connection is closed in order after half of the answer's body."""
    DUPLICATE = "duplicate delivery"
    """The server carries it out twice; the second answer is passed on."""


SERVER_ERROR = Answer(500, "InternalError")
SLOW_DOWN = Answer(503, "SlowDown")
FAULTS = (SERVER_ERROR, SLOW_DOWN, *Fault)
Decide = Callable[[Request], "Fault | Answer | None"]


def at_random(share: float, *, seed: int) -> Decide:
    """Let ``share`` of all requests fail, each kind of fault as often as every other."""
    rng, lock = random.Random(seed), threading.Lock()

    def decide(_: Request) -> Fault | Answer | None:
        with lock:
            return rng.choice(FAULTS) if rng.random() < share else None

    return decide


class FaultyProxy:
    """Passes requests on to ``upstream``, ``host:port``, except those that ``decide`` picks."""

    def __init__(
        self, upstream: str, decide: Decide = lambda _: None, *, stall_seconds: float = 30.0
    ) -> None:
        self.upstream = upstream
        self.decide = decide
        self.stall_seconds = stall_seconds
        self.counts: Counter[str] = Counter()
        self.closing = threading.Event()
        # moto looks for the object and writes it in two steps, which real stores do in one.
        self.conditional_writes = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self.endpoint = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FaultyProxy":
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128
    proxy: FaultyProxy

    def handle_error(self, *_: object) -> None:
        """A client that gives up half way is what the proxy is for."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:
            self.close_connection = True

    def _serve(self) -> None:
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        request = Request(self.command, self.path, self.headers, body)
        fault = proxy.decide(request)
        proxy.counts["all"] += 1
        if isinstance(fault, Answer):
            proxy.counts[fault.code] += 1
            return self._answer(fault.status, fault.headers, fault.body)
        if fault is not None:
            proxy.counts[fault.value] += 1
        if fault is Fault.STALL:
            proxy.closing.wait(proxy.stall_seconds)
        if fault in (Fault.RESET, Fault.STALL):
            return self._reset()
        if fault is Fault.DUPLICATE:
            self._pass_on(request)
        status, headers, content = self._pass_on(request)
        if fault is Fault.LOST_ANSWER or (fault is Fault.TRUNCATED and not content):
            return self._reset()
        if fault is Fault.TRUNCATED:
            content = content[: len(content) // 2]
        return self._answer(status, headers, content)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815 - http.server's names

    def _pass_on(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        proxy = self.server.proxy
        connection = http.client.HTTPConnection(proxy.upstream)
        headers = {k: v for k, v in request.headers.items() if k not in ("Expect", "Connection")}
        is_conditional = "If-None-Match" in request.headers
        lock = proxy.conditional_writes if is_conditional else threading.Lock()
        with lock:
            connection.request(request.method, request.path, request.body, headers)
            answer = connection.getresponse()
            content = answer.read()
        connection.close()
        kept = {k.title(): v for k, v in answer.headers.items() if k != "Connection"}
        return answer.status, kept, content

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response_only(status)
        # A length that was given stays, so that a shorter body is one that was cut.
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.close_connection |= int(headers.get("Content-Length", 0)) > len(body)

    def _reset(self) -> None:
        # Without lingering, closing sends RST, and what was not read yet is lost on both sides.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.wfile.close()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        """Nothing on the terminal."""
