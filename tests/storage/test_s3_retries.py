"""What may pass is asked for again, for as long as was said, and ends in one clear error."""

import itertools
import logging
import time
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig

from storage.blobs import BlobStore, open_blobs
from storage.errors import AlreadyCommittedError, LocationError, UnavailableError
from storage.location import Location
from storage.s3_blobs import S3Blobs
from storage.s3_retries import total_seconds
from tests.storage.faulty_proxy import (
    FAULTS,
    SERVER_ERROR,
    SLOW_DOWN,
    Answer,
    Decide,
    Fault,
    FaultyProxy,
    Request,
)

pytestmark = pytest.mark.s3
MIB = 2**20
PARTS = TransferConfig(
    multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB, preferred_transfer_client="classic"
)


def first(fault: Fault | Answer, *, method: str = "", query: str = "") -> Decide:
    """Let only the first request fail that has this method and query."""
    numbers = itertools.count()

    def decide(request: Request) -> Fault | Answer | None:
        is_meant = request.method.startswith(method) and query in request.path
        return fault if is_meant and next(numbers) == 0 else None

    return decide


@pytest.mark.parametrize(
    "fault",
    [
        *(fault for fault in FAULTS if fault is not Fault.STALL),
        Answer(500, page=b"<!DOCTYPE html>a load balancer's"),
        Answer(502),
        Answer(429),
        Answer(400, "RequestTimeout"),
        Answer(400, "BadDigest"),
        Answer(400, "XAmzContentSHA256Mismatch"),
        Answer(409, "ConditionalRequestConflict"),
        Answer(200, headers={"Content-Length": "300"}),  # of which nothing arrives
    ],
    ids=str,
)
def test_every_verb_gets_over_one_fault(
    fault: Fault | Answer, proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    blobs, path = open_blobs(proxied_location), tmp_path / "file"
    path.write_bytes(b"of the file")

    def disturbed() -> BlobStore:
        s3_proxy.decide = first(fault)
        return blobs

    disturbed().put("a", b"content")
    disturbed().put_file("b", path)
    disturbed().put_if_absent("c", b"first")
    disturbed().get_file("a", path)
    assert path.read_bytes() == b"content"
    assert disturbed().get("b") == b"of the file"
    assert disturbed().get("c") == b"first"
    assert disturbed().exists("c")
    assert disturbed().list() == ["a", "b", "c"]
    assert disturbed().open("a").read() == b"content"
    disturbed().delete("a")
    assert not disturbed().exists("a")


def test_stall_ends_and_is_asked_again(
    proxied_location: Location, s3_proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "8")  # so a stall is over after two
    blobs = open_blobs(proxied_location)
    s3_proxy.decide = first(Fault.STALL)
    started = time.monotonic()
    blobs.put("a", b"content")
    assert 2 <= time.monotonic() - started < 8
    assert blobs.get("a") == b"content"


@pytest.mark.parametrize("fault", [Fault.STALL, Fault.RESET, SLOW_DOWN])
def test_dead_store_is_given_up_in_time(
    fault: Fault | Answer,
    proxied_location: Location,
    s3_proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "1.2")
    blobs, path = S3Blobs(proxied_location, transfers=PARTS), tmp_path / "file"
    path.write_bytes(bytes(5 * MIB))
    s3_proxy.decide = lambda _: fault
    for verb in (
        lambda: blobs.get("a"),
        lambda: blobs.put_if_absent("a", b"x"),
        lambda: blobs.put_file("a", path),
    ):
        started = time.monotonic()
        with pytest.raises(UnavailableError, match=r"tried for \d\.\d s; .*_TOTAL_SECONDS"):
            verb()
        # What is under way at the end may take one timeout more.
        assert 0.3 < time.monotonic() - started < 1.2 + 2 + 1


def test_two_minutes_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, s3_location: Location
) -> None:
    monkeypatch.delenv("RINGFENCE_S3_TOTAL_SECONDS", raising=False)
    assert total_seconds() == 120
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "7.5")
    assert total_seconds() == 7.5
    for text in ("soon", "0", "-1", "nan", "inf", ""):
        monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", text)
        message = f"RINGFENCE_S3_TOTAL_SECONDS is '{text}', .* seconds as a number above 0"
        with pytest.raises(LocationError, match=message):
            open_blobs(s3_location)


def test_long_trouble_is_logged_once_a_request(
    proxied_location: Location, s3_proxy: FaultyProxy, caplog: pytest.LogCaptureFixture
) -> None:
    blobs = open_blobs(proxied_location)
    numbers = itertools.count()
    s3_proxy.decide = lambda _: SLOW_DOWN if next(numbers) < 4 else None
    with caplog.at_level(logging.INFO, logger="storage"):
        blobs.put("a", b"x")
    (message,) = [r.getMessage() for r in caplog.records if r.name.startswith("storage")]
    assert message.startswith("S3 fails (SlowDown during PutObject); it is tried again")


def test_conflict_with_a_winner_is_a_loss(
    proxied_location: Location, s3_proxy: FaultyProxy
) -> None:
    blobs = open_blobs(proxied_location)
    blobs.put_if_absent("a", b"theirs")
    s3_proxy.decide = first(Answer(409, "ConditionalRequestConflict"), method="PUT")
    with pytest.raises(AlreadyCommittedError, match=r"/a.* already exists"):
        blobs.put_if_absent("a", b"ours")
    assert blobs.get("a") == b"theirs"


@pytest.mark.parametrize("fault", [Fault.DUPLICATE, Fault.LOST_ANSWER])
def test_conditional_write_carried_out_twice_has_one_winner(
    fault: Fault, proxied_location: Location, s3_proxy: FaultyProxy
) -> None:
    blobs = open_blobs(proxied_location)
    s3_proxy.decide = first(fault, method="PUT")
    blobs.put_if_absent("a", b"same")
    s3_proxy.decide = first(fault, method="PUT")
    with pytest.raises(AlreadyCommittedError, match=r"/a.* already exists"):
        blobs.put_if_absent("a", b"same")  # even with the same bytes it is somebody else's


def test_store_that_ignores_the_condition_is_refused(
    proxied_location: Location, s3_proxy: FaultyProxy
) -> None:
    s3_proxy.decide = lambda _: Answer(200)
    message = r"/name.* is in a store that ignores If-None-Match"
    with pytest.raises(LocationError, match=message):
        open_blobs(proxied_location).put_if_absent("name", b"x")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault is not Fault.STALL], ids=str)
def test_upload_in_parts_gets_over_a_fault_of_each_of_its_requests(
    fault: Fault | Answer, proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    blobs, path = S3Blobs(proxied_location, transfers=PARTS), tmp_path / "file"
    path.write_bytes(bytes(range(256)) * (5 * MIB // 256) + b"more")
    begin = first(fault, method="POST", query="?uploads")
    part = first(fault, method="PUT", query="partNumber=2")
    end = first(fault, method="POST", query="uploadId=")
    s3_proxy.decide = lambda request: begin(request) or part(request) or end(request)
    blobs.put_file("a", path)
    s3_proxy.decide = first(fault, method="GET")
    blobs.get_file("a", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(("method", "query"), [("PUT", "partNumber=2"), ("POST", "uploadId=")])
def test_upload_that_the_store_has_lost_begins_anew(
    method: str, query: str, proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    # Also what a store says whose answer to the last request was lost, where moto does not mind.
    blobs, path = S3Blobs(proxied_location, transfers=PARTS), tmp_path / "file"
    path.write_bytes(bytes(5 * MIB) + b"more")
    s3_proxy.decide = first(Answer(404, "NoSuchUpload"), method=method, query=query)
    blobs.put_file("a", path)
    assert blobs.get("a") == path.read_bytes()
    s3_proxy.decide = lambda r: Answer(404, "NoSuchUpload") if query in r.path else None
    with pytest.raises(UnavailableError, match=r"unavailable \(NoSuchUpload\), tried for"):
        blobs.put_file("b", path)


@pytest.mark.parametrize("fault", [Answer(403, "AccessDenied"), SERVER_ERROR], ids=str)
def test_failed_upload_leaves_no_parts_behind(
    fault: Answer,
    proxied_location: Location,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "0.3")
    blobs, path = S3Blobs(proxied_location, transfers=PARTS), tmp_path / "file"
    path.write_bytes(bytes(5 * MIB + 1))
    s3_proxy.decide = lambda request: fault if "partNumber=2" in request.path else None
    for verb in (lambda: blobs.put_file("a", path), lambda: blobs.put("a", path.read_bytes())):
        with pytest.raises((LocationError, UnavailableError), match=r"AccessDenied|InternalError"):
            verb()
    uploads = blobs._client.list_multipart_uploads(Bucket=proxied_location.bucket)
    kept = [upload["Key"] for upload in uploads.get("Uploads", ())]
    assert not [key for key in kept if key.startswith(proxied_location.key)]
    assert blobs.list() == []


def test_download_that_breaks_off_again_and_again_is_given_up(
    proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    blobs, path = S3Blobs(proxied_location, transfers=PARTS), tmp_path / "file"
    blobs.put("a", b"content")
    s3_proxy.decide = lambda _: Fault.TRUNCATED
    with pytest.raises(UnavailableError, match=r"/a.* broke off .*RetriesExceededError"):
        blobs.get_file("a", path)
    assert list(tmp_path.iterdir()) == []
