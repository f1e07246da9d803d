"""What an S3 error means and what to check, decided by its code and never by its text.

The text of an S3 answer can quote key ids and signed requests, so no message here repeats it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import botocore.exceptions as boto_errors
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError

from storage.errors import LocationError, StorageError, UnavailableError
from storage.location import Location

_CREDENTIALS: Final = "expected current credentials in the environment, AWS profile or role"
_REGION: Final = "expected the bucket's own region (add ?region=... or set AWS_REGION)"

_FORBIDDEN: Final = (
    "these credentials may not do that here",
    # Without ListBucket S3 answers 403 instead of 404 for a key that does not exist.
    "expected s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on it",
)
_OTHER_REGION: Final = ("the bucket is in another region than was asked", _REGION)
_UNKNOWN_KEY: Final = ("the store does not know these credentials", _CREDENTIALS)
_EXPIRED: Final = (
    "the credentials have expired",
    "expected fresh ones (renew them, for example with `aws sso login`)",
)

# Code -> (why, what to check). Everything in here stays wrong until somebody changes something.
_REFUSALS: Final[dict[str, tuple[str, str]]] = {
    "NoSuchBucket": (
        "there is no such bucket",
        "expected a bucket that exists at this endpoint (check its name and AWS_ENDPOINT_URL_S3)",
    ),
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "403": _FORBIDDEN,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "InvalidToken": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": (
        "the secret key does not belong to the key id",
        "expected both from one pair (check AWS_SECRET_ACCESS_KEY for a lost character)",
    ),
    "RequestTimeTooSkewed": (
        "this machine's clock differs from the store's by too much",
        "expected less than 15 minutes (synchronise the clock)",
    ),
    "PermanentRedirect": _OTHER_REGION,
    "AuthorizationHeaderMalformed": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "301": _OTHER_REGION,
}

_TRANSIENT_CODES: Final = frozenset(
    {
        "RequestTimeout",
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "Throttling",
        "429",
        "ConditionalRequestConflict",
        "409",
    }
)

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
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        raise explain(error, location) from error


def error_code(error: ClientError) -> str:
    """The S3 error code of ``error``; a HEAD answer has only the HTTP status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def explain(error: ClientError | BotoCoreError | Boto3Error, location: Location) -> StorageError:
    """The storage error that says what ``error`` means for ``location``, and what to check."""
    if isinstance(error, ClientError):
        return _explain_answer(error, location)
    kind = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return LocationError(f"{location} needs credentials and has none ({kind}); {_CREDENTIALS}")
    if isinstance(error, boto_errors.NoRegionError | boto_errors.InvalidRegionError):
        return LocationError(f"{location} is in no known region ({kind}); {_REGION}")
    if isinstance(error, boto_errors.ParamValidationError):
        return LocationError(
            f"{location} is not a valid S3 address ({kind}); expected s3://bucket/prefix"
        )
    where = location.endpoint_override or "its endpoint"
    return UnavailableError(
        f"{location} is unreachable ({kind} at {where}), retries included;"
        " expected an S3 endpoint that answers (check the network and AWS_ENDPOINT_URL_S3)"
    )


def _explain_answer(error: ClientError, location: Location) -> StorageError:
    code = error_code(error)
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _REFUSALS:
        why, fix = _REFUSALS[code]
        return LocationError(f"{location} is refused by S3 ({code}), {why}; {fix}")
    if code in _TRANSIENT_CODES or status >= 500:
        return UnavailableError(
            f"{location} is unavailable ({code or status}), retries included;"
            " expected an answer (try again later, or with fewer workers at once)"
        )
    return LocationError(
        f"{location} is refused by S3 ({code or status}) during {error.operation_name};"
        " expected a readable and writable bucket"
    )
