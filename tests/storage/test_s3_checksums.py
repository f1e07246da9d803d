"""What is uploaded carries a checksum that the store compares: AWS's own, or the signature's."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from storage.errors import BlobMissingError, LocationError
from storage.location import Location, parse_location
from storage.s3_blobs import S3Blobs
from tests.storage.faulty_proxy import Answer, FaultyProxy, Request
from tests.storage.test_round_trips import PARTS, THRESHOLD

XML = '<?xml version="1.0"?><R xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{}</R>'


class FakeAws:
    """Answers in AWS's place, before a request leaves this machine."""

    def __init__(self, answer: Callable[[AWSPreparedRequest], tuple[int, str]]) -> None:
        self.requests: list[AWSPreparedRequest] = []
        self._answer = answer

    def __call__(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        self.requests.append(request)
        status, text = self._answer(request)
        headers = {"ETag": '"etag"', "x-amz-checksum-crc32": "AAAAAA=="}
        return AWSResponse(request.url, status, headers, _Raw(text.encode()))


class _Raw:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def stream(self, *_: object, **__: object) -> list[bytes]:
        return [self._data]


def aws_blobs(monkeypatch: pytest.MonkeyPatch, fake: FakeAws) -> S3Blobs:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    blobs = S3Blobs(parse_location("s3://bucket/run?region=eu-west-1"), transfers=PARTS)
    blobs._client.meta.events.register("before-send.s3", fake)
    return blobs


def header(request: AWSPreparedRequest, name: str) -> str:
    value: Any = request.headers[name]
    return value.decode() if isinstance(value, bytes) else str(value)


def test_aws_is_asked_once_and_given_a_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeAws(lambda _: (200, ""))
    blobs = aws_blobs(monkeypatch, fake)
    blobs.put_if_absent("name", b"x")
    blobs.put("name", b"x")
    created, replaced = fake.requests
    assert created.url == "https://bucket.s3.eu-west-1.amazonaws.com/run/name"
    assert header(created, "If-None-Match") == "*"
    for request in (created, replaced):
        assert header(request, "X-Amz-Trailer") == "x-amz-checksum-crc32"


def test_aws_is_given_the_checksums_of_all_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(THRESHOLD + 1))
    fake = FakeAws(
        lambda r: (200, XML.format("<UploadId>1</UploadId>") if "uploads" in r.url else "")
    )
    # A setting for other programs does not take them away.
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    aws_blobs(monkeypatch, fake).put_file("name", tmp_path / "file")
    begin, *parts, end = fake.requests
    assert header(begin, "x-amz-checksum-algorithm") == "CRC32"
    assert [header(part, "X-Amz-Trailer") for part in parts] == ["x-amz-checksum-crc32"] * 2
    assert end.body.count(b"<ChecksumCRC32>") == 2


@pytest.mark.s3
def test_other_stores_are_given_the_sha256_of_every_body(
    proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    signed: list[bool] = []

    def compare(request: Request) -> Answer | None:
        digest = hashlib.sha256(request.body).hexdigest()
        signed.append(request.headers["X-Amz-Content-SHA256"] == digest)
        unasked = ("checksum", "encryption")
        assert not [n for n in request.headers if any(word in n.lower() for word in unasked)]
        return None

    s3_proxy.decide = compare
    (tmp_path / "file").write_bytes(bytes(THRESHOLD + 1))
    blobs = S3Blobs(proxied_location, transfers=PARTS)
    blobs.put("small", b"x")
    blobs.put("large", bytes(THRESHOLD - 1))
    blobs.put_if_absent("new", b"x")
    blobs.put_file("file", tmp_path / "file")
    assert len(signed) == 1 + 1 + 2 + 4
    assert all(signed)


def test_body_is_signed_over_https_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where it would not have to be: AWS leaves it to TLS and the other checksums.
    fake = FakeAws(lambda _: (200, ""))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    blobs = S3Blobs(parse_location("s3://bucket/run?endpoint_override=minio:9000"))
    blobs._client.meta.events.register("before-send.s3", fake)
    blobs.put("name", b"x")
    (request,) = fake.requests
    assert request.url == "https://minio:9000/bucket/run/name"
    assert header(request, "X-Amz-Content-SHA256") == hashlib.sha256(b"x").hexdigest()


@pytest.mark.s3
def test_store_that_knows_checksums_is_given_them_where_the_environment_says_so(
    proxied_location: Location,
    s3_proxy: FaultyProxy,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    seen: list[str | None] = []
    s3_proxy.decide = lambda request: seen.append(request.headers.get("x-amz-checksum-crc32"))
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_supported")
    blobs = S3Blobs(proxied_location, transfers=PARTS)
    blobs.put("name", b"123456789")
    assert seen == ["y/Q5Jg=="]  # the check value of CRC-32, 0xCBF43926
    for size in (0, 9, THRESHOLD + 1):
        (tmp_path / "file").write_bytes(bytes(size))
        blobs.put_file("file", tmp_path / "file")
        blobs.get_file("file", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == bytes(size)
    with pytest.raises(BlobMissingError, match=r"/missing.* does not exist"):
        blobs.get_file("missing", tmp_path / "back")
    elsewhere = S3Blobs(replace(proxied_location, bucket="no-such-bucket"))
    with pytest.raises(LocationError, match="NoSuchBucket"):
        elsewhere.get_file("missing", tmp_path / "back")


@pytest.mark.s3
def test_damage_on_the_way_up_is_noticed_by_the_store_and_sent_again(
    proxied_location: Location, s3_proxy: FaultyProxy
) -> None:
    damaged = [True, False]

    def compare(request: Request) -> Answer | None:
        if request.method != "PUT":
            return None
        body = b"y" if damaged.pop(0) else request.body  # as a store does that checks signatures
        is_same = request.headers["X-Amz-Content-SHA256"] == hashlib.sha256(body).hexdigest()
        return None if is_same else Answer(400, "XAmzContentSHA256Mismatch")

    s3_proxy.decide = compare
    blobs = S3Blobs(proxied_location)
    blobs.put("name", b"x")
    assert blobs.get("name") == b"x"
    assert damaged == []
