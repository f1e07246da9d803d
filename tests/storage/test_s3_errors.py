import botocore.exceptions as boto_errors
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from botocore.stub import Stubber

from storage.errors import AlreadyCommittedError, LocationError, StorageError, UnavailableError
from storage.location import parse_location
from storage.s3_blobs import S3Blobs
from storage.s3_errors import explain, s3_errors_explained

LOCATION = parse_location("s3://bucket/run?endpoint_override=minio:9000")


def answer(code: str, status: int = 400) -> ClientError:
    # The text of an answer may quote what must not be repeated.
    body = {
        "Error": {"Code": code, "Message": "hunter2"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    return ClientError(body, "PutObject")


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        ("NoSuchBucket", "check its name"),
        ("AccessDenied", "s3:ListBucket"),
        ("403", "s3:GetObject"),
        ("ExpiredToken", "aws sso login"),
        ("InvalidAccessKeyId", "current credentials"),
        ("SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY"),
        ("RequestTimeTooSkewed", "synchronise the clock"),
        ("PermanentRedirect", r"add \?region="),
        ("AuthorizationHeaderMalformed", r"add \?region="),
        ("SomethingNew", "PutObject"),
    ],
)
def test_refusal_names_location_code_and_fix(code: str, fix: str) -> None:
    error = explain(answer(code), LOCATION)
    assert type(error) is LocationError
    with pytest.raises(LocationError, match=rf"s3://bucket/run.*\({code}\).*{fix}"):
        raise error


@pytest.mark.parametrize(
    ("code", "status"), [("SlowDown", 503), ("InternalError", 500), ("", 502), ("409", 409)]
)
def test_transient_answer_is_unavailable(code: str, status: int) -> None:
    error = explain(answer(code, status), LOCATION)
    assert type(error) is UnavailableError
    assert f"({code or status})" in str(error)


@pytest.mark.parametrize(
    ("raised", "expected", "text"),
    [
        (boto_errors.NoCredentialsError(), LocationError, "NoCredentialsError"),
        (boto_errors.ProfileNotFound(profile="x"), LocationError, "ProfileNotFound"),
        (boto_errors.NoRegionError(), LocationError, "AWS_REGION"),
        (boto_errors.ParamValidationError(report="x"), LocationError, "s3://bucket/prefix"),
        (
            boto_errors.EndpointConnectionError(endpoint_url="http://hunter2"),
            UnavailableError,
            "EndpointConnectionError at minio:9000",
        ),
    ],
)
def test_failure_without_an_answer_is_explained(
    raised: BotoCoreError, expected: type[StorageError], text: str
) -> None:
    with pytest.raises(expected, match=text) as caught, s3_errors_explained(LOCATION):
        raise raised
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("code", ["AccessDenied", "SlowDown", "SomethingNew"])
def test_text_of_the_answer_is_not_repeated(code: str) -> None:
    assert "hunter2" not in str(explain(answer(code), LOCATION))


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> tuple[S3Blobs, Stubber]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    blobs = S3Blobs(LOCATION)
    return blobs, Stubber(blobs._client)


def test_conflict_is_tried_again(stubbed: tuple[S3Blobs, Stubber]) -> None:
    blobs, stubber = stubbed
    stubber.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
    stubber.add_response("put_object", {})
    stubber.add_client_error("put_object", "PreconditionFailed", http_status_code=412)
    with stubber:
        blobs.put_if_absent("name", b"x")
    stubber.assert_no_pending_responses()


def test_conflict_then_a_winner_is_already_committed(stubbed: tuple[S3Blobs, Stubber]) -> None:
    blobs, stubber = stubbed
    stubber.add_client_error("put_object", "ConditionalRequestConflict", http_status_code=409)
    stubber.add_client_error("put_object", "PreconditionFailed", http_status_code=412)
    with stubber, pytest.raises(AlreadyCommittedError, match="s3://bucket/run/name"):
        blobs.put_if_absent("name", b"x")


def test_refused_conditional_write_is_explained(stubbed: tuple[S3Blobs, Stubber]) -> None:
    blobs, stubber = stubbed
    stubber.add_client_error("put_object", "AccessDenied", http_status_code=403)
    with stubber, pytest.raises(LocationError, match="AccessDenied"):
        blobs.put_if_absent("name", b"x")


def test_store_that_ignores_the_condition_is_refused(stubbed: tuple[S3Blobs, Stubber]) -> None:
    blobs, stubber = stubbed
    stubber.add_response("put_object", {})
    stubber.add_response("put_object", {})
    message = "s3://bucket/run/name.* is in a store that ignores If-None-Match"
    with stubber, pytest.raises(LocationError, match=message):
        blobs.put_if_absent("name", b"x")


def test_aws_is_asked_only_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    blobs = S3Blobs(parse_location("s3://bucket/run?region=eu-west-1"))
    stubber = Stubber(blobs._client)
    stubber.add_response("put_object", {})
    with stubber:
        blobs.put_if_absent("name", b"x")
