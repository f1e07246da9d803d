"""What an S3 error means and what to check, decided by its code and never by its text.

The text of an S3 answer can quote key ids, tokens and signed requests, so no message here repeats
it, and it is taken off the error that ours is raised from.
"""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import botocore.exceptions as boto_errors
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from s3transfer.exceptions import RetriesExceededError, S3DownloadFailedError, S3ValidationError

from storage.errors import BlobMissingError, LocationError, StorageError, UnavailableError
from storage.location import Location
from storage.s3_codes import CREDENTIALS, LOST_UPLOAD, REFUSALS, REGION, TRANSIENT

TOTAL_SECONDS_VARIABLE: Final = "RINGFENCE_S3_TOTAL_SECONDS"

# What boto3 raises for the world's faults.
S3_ERRORS: Final = (
    *(ClientError, BotoCoreError, Boto3Error, ResponseParserError),
    *(RetriesExceededError, S3DownloadFailedError, S3ValidationError),
)

_PATIENCE: Final = f"{TOTAL_SECONDS_VARIABLE} sets for how long"
_TRANSIENT_FAILURES: Final = (
    boto_errors.HTTPClientError,
    boto_errors.ConnectionError,
    boto_errors.IncompleteReadError,
    boto_errors.FlexibleChecksumError,
)
_BROKEN_TRANSFERS: Final = (RetriesExceededError, S3DownloadFailedError, S3ValidationError)

_NO_CREDENTIALS: Final = (
    boto_errors.NoCredentialsError,
    boto_errors.PartialCredentialsError,
    boto_errors.CredentialRetrievalError,
    boto_errors.ProfileNotFound,
    boto_errors.SSOError,
    boto_errors.TokenRetrievalError,
)


@contextmanager
def s3_errors_explained(location: Location) -> Iterator[None]:
    """Turn what boto3 raises inside the block into a :class:`StorageError` about ``location``."""
    started = time.monotonic()
    try:
        yield
    except S3_ERRORS as error:
        problem = explain(error, location, tried_seconds=time.monotonic() - started)
        raise problem from _without_secrets(error)


def error_code(error: ClientError) -> str:
    """The S3 error code of ``error``, or the HTTP status of an answer that has none."""
    return str(error.response.get("Error", {}).get("Code") or _status(error))


def is_transient(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ClientError):
        return is_transient_answer(error_code(error), _status(error))
    return isinstance(error, _TRANSIENT_FAILURES) and not _is_untrusted(error)


def is_transient_answer(code: str, status: int) -> bool:
    """Whether an answer with this error code and HTTP status may be another one later."""
    return code in TRANSIENT or (status >= 500 and code not in REFUSALS)


def is_broken_transfer(error: Exception) -> bool:
    """Whether a transfer in several requests failed as a whole, so that it can only begin anew."""
    if isinstance(error, ClientError):
        return error_code(error) in LOST_UPLOAD
    return isinstance(error, _BROKEN_TRANSFERS)


def explain(error: Exception, location: Location, *, tried_seconds: float) -> StorageError:
    """The storage error that says what ``error`` means for ``location``, and what to check.

    Args:
        error: one of :data:`S3_ERRORS`.
        location: what was asked for.
        tried_seconds: for how long.
    """
    tried = f"tried for {tried_seconds:.1f} s"
    if isinstance(error, ClientError):
        return _explain_answer(error, location, tried)
    kind = type(error).__name__
    where = location.endpoint_override or "its endpoint"
    if is_broken_transfer(error):
        return UnavailableError(
            f"{location} broke off or changed while it was copied ({kind}), {tried};"
            " expected a store that answers to the end (try again later)"
        )
    if is_transient(error):
        return UnavailableError(
            f"{location} is unreachable ({kind} at {where}), {tried}; expected an S3 endpoint that"
            f" answers (check the network and AWS_ENDPOINT_URL_S3; {_PATIENCE})"
        )
    return LocationError(f"{location} {_misconfiguration(error, where)}")


def blob_missing(location: Location) -> BlobMissingError:
    """The error that says that nothing is stored as ``location``."""
    return BlobMissingError(
        f"{location} does not exist; expected an object (check the prefix and the name)"
    )


def _explain_answer(error: ClientError, location: Location, tried: str) -> StorageError:
    code = error_code(error)
    if code in REFUSALS:
        why, fix = REFUSALS[code]
        return LocationError(f"{location} is refused by S3 ({code}), {why}; {fix}")
    # HEAD answers have no body, and so no code.
    if code == "NoSuchKey" or (code == "404" and error.operation_name == "HeadObject"):
        return blob_missing(location)
    if is_transient(error) or is_broken_transfer(error):
        return UnavailableError(
            f"{location} is unavailable ({code}), {tried}; expected an answer"
            f" (try again later, or with fewer workers at once; {_PATIENCE})"
        )
    return LocationError(
        f"{location} is refused by S3 ({code}) during {error.operation_name};"
        " expected a readable and writable bucket (check AWS_ENDPOINT_URL_S3 and permissions)"
    )


def _misconfiguration(error: Exception, where: str) -> str:
    kind = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return f"needs credentials and has none ({kind}); {CREDENTIALS}"
    if isinstance(error, boto_errors.NoRegionError | boto_errors.InvalidRegionError):
        return f"is in no known region ({kind}); {REGION}"
    if isinstance(error, boto_errors.ParamValidationError):
        return f"is not a valid S3 address ({kind}); expected s3://bucket/prefix"
    if isinstance(error, ResponseParserError):
        return (
            f"is at {where}, which answers, but not as S3 does; expected an S3 endpoint"
            " (check AWS_ENDPOINT_URL_S3)"
        )
    if _is_untrusted(error):
        return (
            f"is at {where}, whose certificate is not trusted here; expected one signed by an"
            " authority in the file AWS_CA_BUNDLE names"
        )
    return (
        f"cannot be used ({kind}); expected a working AWS configuration"
        " (check the variables AWS_... and ~/.aws/config)"
    )


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _is_untrusted(error: Exception) -> bool:
    """Whether ``error`` is that the store's certificate was not accepted."""
    if not isinstance(error, boto_errors.SSLError):
        return False
    cause = error.kwargs.get("error")  # urllib3's, which holds Python's
    return any(isinstance(e, ssl.SSLCertVerificationError) for e in getattr(cause, "args", ()))


def _without_secrets(error: Exception) -> Exception:
    """``error`` without what the store said in words, and without the request, which is signed.

    Neither is in our own text, but both are in that of ``error``, or in a copy of it that is sent
    to another process.
    """
    if isinstance(error, ClientError):
        code = error_code(error)
        error.response["Error"] = {"Code": code}
        error.args = (f"S3 answered {error.operation_name} with {code}",)
    elif isinstance(error, boto_errors.HTTPClientError):
        error.request = error.response = None
    return error
