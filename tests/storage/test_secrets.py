"""No secret reaches an error, a log or a manifest, whatever goes wrong."""

import logging
import pickle
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from storage.blobs import open_blobs
from storage.commit import commit, read_part
from storage.errors import LocationError, StorageError
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME
from tests.storage.faulty_proxy import Answer, Fault, FaultyProxy
from tests.storage.test_s3_errors import REFUSALS, VERBS

pytestmark = pytest.mark.s3
MARK = "hunter2"


@pytest.fixture(autouse=True)
def marked(s3_location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials that can be found again wherever they leak to."""
    assert s3_location  # which sets the credentials that these replace
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", f"{MARK}-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", f"{MARK}-token")
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "0.2")


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything that is logged, down to our own details; boto's debug log shows requests."""
    caplog.set_level(logging.INFO)
    caplog.set_level(logging.DEBUG, logger="storage")
    yield caplog
    assert MARK not in caplog.text


def failure(call: Callable[[], object]) -> StorageError:
    """What ``call`` raises, which says nothing secret, nor does anything that led to it."""
    with pytest.raises(StorageError) as caught:
        call()
    error: BaseException | None = caught.value
    assert MARK not in "".join(traceback.format_exception(caught.value))
    while error is not None:
        assert MARK not in f"{error} {error!r}"
        if not isinstance(error, OSError):  # boto's of that kind cannot be copied
            assert MARK.encode() not in pickle.dumps(error)
        error = error.__cause__ or error.__context__
    return caught.value


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize(("status", "code"), [(s, c) for s, c, _ in REFUSALS] + [(503, "SlowDown")])
def test_answer_that_quotes_a_secret_is_not_repeated(
    status: int, code: str, proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    s3_proxy.decide = lambda _: Answer(status, code, message=f"{MARK} is no good")
    (tmp_path / "file").write_bytes(b"x")
    blobs = open_blobs(proxied_location)
    for verb in VERBS.values():
        assert isinstance(failure(lambda verb=verb: verb(blobs, tmp_path / "file")), StorageError)


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize("fault", [Fault.RESET, Fault.TRUNCATED, Answer(502), Answer(404)], ids=str)
def test_failure_of_the_network_says_nothing_secret(
    fault: Fault | Answer, proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    blobs = open_blobs(proxied_location)
    blobs.put("x", b"content")
    s3_proxy.decide = lambda _: fault
    failure(lambda: blobs.get("x"))
    failure(lambda: blobs.get_file("x", tmp_path / "file"))


@pytest.mark.usefixtures("logged")
@pytest.mark.parametrize(
    "endpoint",
    [
        f"http://user:{MARK}@127.0.0.1:1",
        f"http://{MARK}@127.0.0.1:1",
        f"http://127.0.0.1:1?token={MARK}",
        f"http://127.0.0.1:{MARK}",
        f"{MARK}",
        f"http://:{MARK}",
        f"http://ex ample/{MARK}",
    ],
)
def test_endpoint_with_a_secret_is_refused_and_not_repeated(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
    error = failure(lambda: open_blobs("s3://bucket/x").get("x"))
    assert isinstance(error, LocationError)
    assert "has an endpoint that is no plain URL; expected http[s]://host[:port]" in str(error)


@pytest.mark.usefixtures("logged")
def test_missing_parts_of_the_configuration_are_named_without_the_others(
    s3_location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure(lambda: open_blobs(f"s3://bucket/x?endpoint_override=u:{MARK}@host"))
    failure(lambda: open_blobs(f"s3://u:{MARK}@bucket/x"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    failure(lambda: open_blobs(s3_location).get("x"))
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    failure(lambda: open_blobs(s3_location).get("x"))
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "sometimes")
    failure(lambda: open_blobs(s3_location).get("x"))
    failure(lambda: open_blobs(replace(s3_location, endpoint_override="127.0.0.1:1")).get("x"))


@pytest.mark.usefixtures("logged")
def test_commit_and_its_manifest_say_nothing_secret(s3_location: Location) -> None:
    # A slow machine is no failure here.
    recipe = {"output": str(s3_location)}
    commit(s3_location, {"part": b"x"}, kind="model", description={"recipe": recipe})
    blobs = open_blobs(s3_location)
    assert MARK.encode() not in blobs.get(MANIFEST_NAME)
    failure(lambda: commit(s3_location, {"part": b"x"}, kind="model", description={}))
    failure(lambda: read_part(s3_location, "other"))
    failure(lambda: read_part(s3_location / "other", "part"))
    (path,) = [name for name in blobs.list() if name != MANIFEST_NAME]
    blobs.put(path, b"y")
    failure(lambda: read_part(s3_location, "part"))


def test_error_of_the_address_says_no_secret_options() -> None:
    with pytest.raises(LocationError) as caught:
        parse_location(f"s3://bucket/x?kms_key_id=user@{MARK}&server_side_encryption=aws:kms")
    assert MARK not in str(caught.value)
