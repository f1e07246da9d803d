"""Asking S3 again: what is worth it, how long to wait in between, and when to give up.

Guarantee: once a verb is older than ``RINGFENCE_S3_TOTAL_SECONDS`` it sends nothing again; what is
under way has a timeout, of a quarter of that. In the transfer of a large file every part has that
time to itself, and so has every page of a list, since a healthy one may take longer.
"""

import logging
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from storage.errors import LocationError
from storage.s3_errors import (
    S3_ERRORS,
    TOTAL_SECONDS_VARIABLE,
    is_broken_transfer,
    is_transient,
    is_transient_answer,
)

logger = logging.getLogger(__name__)

_T = TypeVar("_T")
# Long enough for a store to restart or to move to another machine.
_DEFAULT_TOTAL_SECONDS: Final = 120.0
# The first wait is short, since most faults hit one connection; from the eighth on a store that
# comes back is asked every ten seconds by each worker.
_FIRST_WAIT_SECONDS: Final = 0.1
_LONGEST_WAIT_SECONDS: Final = 20.0
# By then a second or two has passed: somebody who watches wants to know.
_QUIET_ATTEMPTS: Final = 4
# Each of these uploads or downloads everything once more, so the store has to be quite broken.
_TRANSFER_ATTEMPTS: Final = 4

_DEADLINE: Final = "ringfence_deadline"
_XML: Final = (b"<?xml", b"<Error")

# When the verb under way in this thread gives up. The transfer manager's threads do not see it.
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def total_seconds() -> float:
    """For how long a verb is tried: ``RINGFENCE_S3_TOTAL_SECONDS``, or two minutes.

    Raises:
        LocationError: the variable is no positive number.
    """
    text = os.environ.get(TOTAL_SECONDS_VARIABLE, str(_DEFAULT_TOTAL_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise LocationError(
            f"{TOTAL_SECONDS_VARIABLE} is {text!r}, which is no time to wait for S3; expected"
            " seconds as a number above 0"
        )
    return seconds


def attach(client: Any, *, seconds: float) -> None:
    """Let every request of ``client``, whose own retries are off, be tried for ``seconds``."""

    def set_deadline(*, params: dict[str, Any], **_: object) -> None:
        params["context"][_DEADLINE] = _deadline.get() or time.monotonic() + seconds

    def wait_before_retry(
        *,
        attempts: int,
        response: tuple[Any, Mapping[str, Any]] | None,
        caught_exception: Exception | None,
        operation: Any,
        request_dict: dict[str, Any],
        **_: object,
    ) -> float | None:
        if response is None:
            reason = type(caught_exception).__name__
            is_worth_it = caught_exception is not None and is_transient(caught_exception)
        else:
            status = response[0].status_code
            reason = str(response[1].get("Error", {}).get("Code") or status)
            is_worth_it = is_transient_answer(reason, status)
        wait = _wait_seconds(attempts)
        left = request_dict["context"][_DEADLINE] - time.monotonic()
        if not is_worth_it or wait >= left:
            return None
        if attempts == _QUIET_ATTEMPTS:
            message = "S3 fails (%s during %s); it is tried again for up to %.0f s"
            logger.warning(message, reason, operation.name, left)
        return wait

    client.meta.events.register("before-call.s3", set_deadline)
    client.meta.events.register("needs-retry.s3", wait_before_retry)
    client.meta.events.register("before-parse.s3", _count_cut_answer_as_server_error)
    client.meta.events.register("before-call.s3.HeadBucket", _follow_no_redirect)


@contextmanager
def one_deadline(seconds: float) -> Iterator[float]:
    """Let all that is asked in the block, by this thread, end by the time that is yielded.

    That is ``seconds`` from now, or before if there is a block around this one.
    """
    deadline = _deadline.get() or time.monotonic() + seconds
    token = _deadline.set(deadline)
    try:
        yield deadline
    finally:
        _deadline.reset(token)


def run(action: Callable[[], _T], *, seconds: float) -> _T:
    """Return what ``action`` returns, done again while it fails in a way that may pass.

    Requests are repeated on their own; this is for what is more than one request, or less: an
    answer whose body breaks off.
    """
    with one_deadline(seconds) as deadline:
        attempt = 0
        while True:
            attempt += 1
            try:
                return action()
            except S3_ERRORS as error:
                wait = _wait_seconds(attempt)
                if not is_transient(error) or time.monotonic() + wait >= deadline:
                    raise
            time.sleep(wait)


def run_transfer(action: Callable[[], _T]) -> _T:
    """Return what ``action`` returns, begun anew where the store lost the whole transfer."""
    for attempt in range(1, _TRANSFER_ATTEMPTS):
        try:
            return action()
        except S3_ERRORS as error:
            if not is_broken_transfer(error):
                raise
        time.sleep(_wait_seconds(attempt))
    return action()


def _wait_seconds(attempt: int) -> float:
    # Evenly random down to nothing, so that workers that failed together do not come back together.
    return random.uniform(0, min(_FIRST_WAIT_SECONDS * 2.0**attempt, _LONGEST_WAIT_SECONDS))


def _count_cut_answer_as_server_error(
    *, operation_model: Any, response_dict: dict[str, Any], **_: object
) -> None:
    # Nothing below checks this for answers that are read at once, and a list of blobs of which
    # nothing arrived reads as an empty one. An error page that is no XML is a server error, too.
    body, length = response_dict["body"], response_dict["headers"].get("content-length")
    if not isinstance(body, bytes) or operation_model.http["method"] == "HEAD":
        return
    is_cut = length is not None and len(body) < int(length)
    is_page = response_dict["status_code"] >= 500 and not body.lstrip().startswith(_XML)
    if is_cut or is_page:
        response_dict["status_code"] = max(response_dict["status_code"], 500)
        response_dict["body"] = b""


def _follow_no_redirect(*, params: dict[str, Any], **_: object) -> None:
    # boto3 sends HeadBucket to learn the bucket's region after a redirect. Where everything is
    # redirected, from http to https say, it would go on to do so until the stack is full.
    params["context"]["s3_redirect"]["redirected"] = True
