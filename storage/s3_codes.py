"""The error codes of S3: what each means, and what to check or whether to wait."""

from typing import Final

CREDENTIALS: Final = "expected current credentials in the environment, AWS profile or role"
REGION: Final = "expected the bucket's own region (add ?region=... or set AWS_REGION)"

_FORBIDDEN: Final = (
    "these credentials may not do that here",
    # Without ListBucket S3 answers 403 instead of 404 for a key that does not exist.
    "expected s3:GetObject, s3:PutObject, s3:DeleteObject and s3:ListBucket on it"
    " (and kms:GenerateDataKey and kms:Decrypt where it is encrypted with a key)",
)
_OTHER_REGION: Final = ("the bucket is in another region than was asked", REGION)
_MOVED: Final = ("the store says to ask elsewhere", f"{REGION}, or scheme=https")
_UNKNOWN_KEY: Final = ("the store does not know these credentials", CREDENTIALS)
_EXPIRED: Final = (
    "the credentials have expired",
    "expected fresh ones (renew them, for example with `aws sso login`)",
)
_UNUSABLE_KEY: Final = (
    "the encryption key cannot be used",
    "expected kms_key_id to name an enabled key in the bucket's region that these credentials may"
    " use",
)

# Code -> (why, what to check). Everything in here stays wrong until somebody changes something.
REFUSALS: Final[dict[str, tuple[str, str]]] = {
    "NoSuchBucket": (
        "there is no such bucket",
        "expected a bucket that exists at this endpoint (check its name and AWS_ENDPOINT_URL_S3)",
    ),
    "AccessDenied": _FORBIDDEN,
    "AllAccessDisabled": _FORBIDDEN,
    "403": _FORBIDDEN,
    "ExpiredToken": _EXPIRED,
    "ExpiredTokenException": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
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
    "301": _MOVED,
    "302": _MOVED,
    "307": _MOVED,
    "308": _MOVED,
    "KMS.NotFoundException": _UNUSABLE_KEY,
    "KMS.DisabledException": _UNUSABLE_KEY,
    "KMS.KMSInvalidStateException": _UNUSABLE_KEY,
    "NotImplemented": (
        "the store does not know what it was asked for",
        "expected one with conditional writes, multipart uploads, and the encryption asked for",
    ),
}

TRANSIENT: Final = frozenset(
    {
        "RequestTimeout",
        "SlowDown",
        "ServiceUnavailable",
        "InternalError",
        "Throttling",
        "KMS.ThrottlingException",
        "429",
        # Another request on the same key is in flight; it is over within a second or two.
        "ConditionalRequestConflict",
        "OperationAborted",
        "409",
        # The body was damaged on its way.
        "BadDigest",
        "IncompleteBody",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
    }
)
# The store has lost what was uploaded so far, or the answer that the upload was complete.
LOST_UPLOAD: Final = frozenset({"NoSuchUpload", "InvalidPart"})
