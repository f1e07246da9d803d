"""What a user reads when S3 refuses: each answer comes from a server, over HTTP."""

import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import botocore.exceptions as boto_errors
import pytest
import urllib3.exceptions
from botocore.exceptions import BotoCoreError

from storage.blobs import BlobStore, open_blobs
from storage.errors import BlobMissingError, LocationError, StorageError, UnavailableError
from storage.location import Location, parse_location
from storage.s3_errors import s3_errors_explained
from tests.storage.faulty_proxy import Answer, FaultyProxy

pytestmark = pytest.mark.s3

LOCATION = parse_location("s3://bucket/run?endpoint_override=minio:9000")
VERBS: dict[str, Callable[[BlobStore, Path], object]] = {
    "put": lambda blobs, _: blobs.put("x", b"x"),
    "put_file": lambda blobs, path: blobs.put_file("x", path),
    "put_if_absent": lambda blobs, _: blobs.put_if_absent("x", b"x"),
    "get": lambda blobs, _: blobs.get("x"),
    "get_file": lambda blobs, path: blobs.get_file("x", path),
    "open": lambda blobs, _: blobs.open("x"),
    "exists": lambda blobs, _: blobs.exists("x"),
    "list": lambda blobs, _: blobs.list(),
    "delete": lambda blobs, _: blobs.delete("x"),
}
REFUSALS = [
    (403, "AccessDenied", "may not do that here; expected s3:GetObject, .* s3:ListBucket"),
    (403, "AllAccessDisabled", "may not do that here"),
    (404, "NoSuchBucket", "no such bucket; .*check its name and AWS_ENDPOINT_URL_S3"),
    (400, "ExpiredToken", "have expired; expected fresh ones .*aws sso login"),
    (400, "TokenRefreshRequired", "have expired"),
    (403, "InvalidAccessKeyId", "does not know these credentials; expected current credentials"),
    (400, "InvalidToken", "does not know these credentials"),
    (403, "SignatureDoesNotMatch", "secret key does not belong .*check AWS_SECRET_ACCESS_KEY"),
    (403, "RequestTimeTooSkewed", "clock differs .*synchronise the clock"),
    (301, "PermanentRedirect", r"another region .*add \?region=... or set AWS_REGION"),
    (400, "AuthorizationHeaderMalformed", r"another region .*add \?region="),
    (400, "IllegalLocationConstraintException", "another region"),
    (400, "KMS.DisabledException", "encryption key cannot be used; expected kms_key_id"),
    (400, "KMS.NotFoundException", "encryption key cannot be used"),
    (501, "NotImplemented", "does not know what it was asked for; expected one with conditional"),
    (400, "SomethingNew", "during PutObject; expected a readable and writable bucket"),
]


@pytest.mark.parametrize(("status", "code", "message"), REFUSALS)
def test_refusal_says_what_to_check_and_is_not_asked_for_again(
    status: int, code: str, message: str, proxied_location: Location, s3_proxy: FaultyProxy
) -> None:
    s3_proxy.decide = lambda _: Answer(status, code)
    with pytest.raises(
        LocationError, match=rf"{proxied_location.key}/x.* refused by S3 \({code}\).*{message}"
    ):
        open_blobs(proxied_location).put("x", b"")
    # Where the region is wrong, boto3 asks for the right one.
    assert s3_proxy.counts["all"] == 1 or "region" in message


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_a_refusal(
    verb: str, proxied_location: Location, s3_proxy: FaultyProxy, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    s3_proxy.decide = lambda _: Answer(403, "AccessDenied")
    with pytest.raises(LocationError, match=r"s3://tests/.*may not do that here|\(403\)"):
        VERBS[verb](open_blobs(proxied_location), path)
    assert path.read_bytes() == b"content"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_how_long_it_tried(
    verb: str,
    proxied_location: Location,
    s3_proxy: FaultyProxy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RINGFENCE_S3_TOTAL_SECONDS", "0.2")
    path = tmp_path / "file"
    path.write_bytes(b"content")
    s3_proxy.decide = lambda _: Answer(503, "SlowDown")
    message = (
        r"is unavailable \(SlowDown\), tried for 0\.\d s; expected an answer \(try again later, or"
        r" with fewer workers at once; RINGFENCE_S3_TOTAL_SECONDS sets for how long\)"
    )
    with pytest.raises(UnavailableError, match=message):
        VERBS[verb](open_blobs(proxied_location), path)
    assert path.read_bytes() == b"content"


def test_missing_bucket_and_missing_key_are_told_apart(
    s3_location: Location, tmp_path: Path
) -> None:
    with pytest.raises(BlobMissingError, match=r"/x.* does not exist; expected an object"):
        open_blobs(s3_location).get_file("x", tmp_path / "file")
    with pytest.raises(LocationError, match=r"no-such-bucket/.*NoSuchBucket"):
        open_blobs(replace(s3_location, bucket="no-such-bucket")).get_file("x", tmp_path / "file")


def test_answer_of_something_else_is_not_taken_for_s3s(
    proxied_location: Location, s3_proxy: FaultyProxy
) -> None:
    blobs = open_blobs(proxied_location)
    s3_proxy.decide = lambda _: Answer(200, page=b"<html></html>")
    for verb in (lambda: blobs.list(), lambda: blobs.exists("x")):
        with pytest.raises(LocationError, match=rf"{s3_proxy.endpoint}, which answers, but not"):
            verb()
    s3_proxy.decide = lambda _: Answer(404, page=b"<!DOCTYPE html><title>Not here</title><p>")
    for verb in (lambda: blobs.get("x"), lambda: blobs.list()):
        with pytest.raises(LocationError, match=r"\(404\).*check AWS_ENDPOINT_URL_S3"):
            verb()
    s3_proxy.decide = lambda _: Answer(301, page=b"<html>https</html>")
    with pytest.raises(LocationError, match=r"to ask elsewhere; .* or scheme=https"):
        blobs.put("x", b"")


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (boto_errors.NoCredentialsError(), LocationError, "NoCredentialsError"),
        (boto_errors.ProfileNotFound(profile="x"), LocationError, "ProfileNotFound"),
        (boto_errors.NoRegionError(), LocationError, "AWS_REGION"),
        (boto_errors.ParamValidationError(report="x"), LocationError, "s3://bucket/prefix"),
        (
            boto_errors.InvalidRetryModeError(provided_retry_mode="x", valid_modes=[]),
            LocationError,
            r"cannot be used \(InvalidRetryModeError\); expected a working AWS configuration",
        ),
        (
            boto_errors.EndpointConnectionError(endpoint_url="http://hunter2"),
            UnavailableError,
            "EndpointConnectionError at minio:9000.* tried for 0.0 s",
        ),
        (
            boto_errors.SSLError(
                endpoint_url="https://minio:9000",
                error=urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("self-signed")),
            ),
            LocationError,
            "minio:9000, whose certificate is not trusted here; .* AWS_CA_BUNDLE",
        ),
        (
            boto_errors.SSLError(endpoint_url="https://minio:9000", error=ssl.SSLEOFError()),
            UnavailableError,
            "SSLError at minio:9000",
        ),
    ],
)
def test_failure_without_an_answer_is_explained(
    raised: BotoCoreError, expected: type[StorageError], text: str
) -> None:
    with pytest.raises(expected, match=text) as caught, s3_errors_explained(LOCATION):
        raise raised
    assert caught.value.__cause__ is raised
