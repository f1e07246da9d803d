"""What the tests' S3 server is asked for, whichever process asks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
from moto.server import DomainDispatcherApplication


class Request(NamedTuple):
    """One request, as the server saw it."""

    method: str
    path: str
    range: str


@contextmanager
def recorded_requests() -> Iterator[list[Request]]:
    """All requests to the server of this process inside the block, in the order they came."""
    requests: list[Request] = []
    answer = DomainDispatcherApplication.__call__

    def recorded(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        requests.append(Request(method, path, environ.get("HTTP_RANGE", "")))
        return answer(self, environ, start_response)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DomainDispatcherApplication, "__call__", recorded)
        yield requests


def downloads(requests: list[Request]) -> list[str]:
    """Names of the objects whose bytes were asked for, once for each request."""
    return [r.path.rpartition("/")[2] for r in requests if r.method == "GET" and _is_object(r)]


def _is_object(request: Request) -> bool:
    # Listings ask for the bucket: /tests
    return request.path.strip("/").count("/") > 0
