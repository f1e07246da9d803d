"""Addresses of things that are kept: a local folder, or a bucket and prefix on S3.

A location is only an address. Parsing one touches neither disk nor network, and its text form
parses back to the same location, so jobs hand each other plain strings.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import parse_qsl, unquote, urlencode

from storage.errors import LocationError

ACCEPTED: Final = "expected a local path, file:///path or s3://bucket/prefix"
# The names are those of Arrow's S3 addresses, so one address works in both libraries.
_ARROW_OPTIONS: Final = ("endpoint_override", "region", "scheme")
# The names are those of AWS's own tools; Arrow refuses them.
_ENCRYPTION_OPTIONS: Final = ("server_side_encryption", "kms_key_id")
_S3_OPTIONS: Final = (*_ARROW_OPTIONS, *_ENCRYPTION_OPTIONS)
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# What botocore lets through; the store itself applies the stricter naming rules.
_BUCKET: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")


@dataclass(frozen=True, kw_only=True)
class Location:
    """One address. Build it with :func:`parse_location`, extend it with ``location / "name"``."""

    scheme: Literal["file", "s3"]
    """What kind of store holds it."""
    bucket: str = ""
    """S3 bucket; empty for a local path."""
    key: str
    """Absolute path, or the key prefix in the bucket without outer slashes (empty: its root)."""
    endpoint_override: str | None = None
    """``host[:port]`` of an S3-compatible store; ``None`` leaves it to the environment."""
    region: str | None = None
    """Region of the bucket; ``None`` leaves it to the environment."""
    endpoint_scheme: Literal["http", "https"] | None = None
    """Protocol spoken to ``endpoint_override``; ``None`` is https."""
    server_side_encryption: Literal["AES256", "aws:kms"] | None = None
    """How the store encrypts what is written there; ``None`` leaves it to the bucket."""
    kms_key_id: str | None = None
    """Id, ARN or alias of the key for ``aws:kms``; ``None`` is the account's own key for S3."""

    def __str__(self) -> str:
        """Text that parses back to this location."""
        if self.is_local:
            return self.key
        values = (
            *(self.endpoint_override, self.region, self.endpoint_scheme),
            *(self.server_side_encryption, self.kms_key_id),
        )
        options = [(k, v) for k, v in zip(_S3_OPTIONS, values, strict=True) if v is not None]
        query = "?" + urlencode(options, safe="/:") if options else ""
        return f"s3://{self.bucket}/{self.key}{query}"

    @property
    def arrow_uri(self) -> str:
        """This address as Arrow, and so Ray, reads it: without the options for encryption.

        What they write there is encrypted as the bucket says.
        """
        return str(replace(self, server_side_encryption=None, kms_key_id=None))

    def __truediv__(self, name: str) -> "Location":
        """The location of ``name``, a relative path, inside this one.

        Raises:
            ValueError: ``name`` is empty, absolute, or would lead out of this location.
        """
        if _has_bad_segment(name) or "\0" in name or ("?" in name and not self.is_local):
            raise ValueError(
                f"name is {name!r}, which does not stay inside {self};"
                " expected a relative path without empty, '.' or '..' parts"
            )
        base = self.key.rstrip("/")
        return replace(self, key=f"{base}/{name}" if base or self.is_local else name)

    @property
    def is_local(self) -> bool:
        """Whether this is a path on a file system."""
        return self.scheme == "file"

    @property
    def path(self) -> Path:
        """The path of a local location.

        Raises:
            ValueError: this location is on S3.
        """
        if not self.is_local:
            raise ValueError(f"location is {self}, which has no local path; expected a local path")
        return Path(self.key)

    @property
    def name(self) -> str:
        """The last part of the address; empty at the root of a bucket or file system."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The location that holds this one; a root is its own parent."""
        head = self.key.rpartition("/")[0]
        return replace(self, key=head or "/" if self.is_local else head)

    def sibling(self, suffix: str) -> "Location":
        """The location beside this one whose name has ``suffix`` appended, as in ``r18.run``.

        Raises:
            ValueError: this location is a root, or ``suffix`` would change the folder.
        """
        if not self.name or "/" in suffix:
            raise ValueError(
                f"{self} has no sibling {suffix!r};"
                " expected a named location and a suffix without '/'"
            )
        return self.parent / (self.name + suffix)

    @property
    def endpoint_url(self) -> str | None:
        """The overriding endpoint as a URL, or ``None`` where the address names none."""
        if self.endpoint_override is None:
            return None
        return f"{self.endpoint_scheme or 'https'}://{self.endpoint_override}"


Address: TypeAlias = Location | str | os.PathLike[str]
"""What every function of this package takes where something is kept."""


def parse_location(text: Address) -> Location:
    """Return the location that ``text`` names; a relative path counts from the working directory.

    Args:
        text: a path (``~`` is expanded), ``file:///path``, or
            ``s3://bucket/prefix[?endpoint_override=..&region=..&scheme=http|https]``, where
            ``server_side_encryption=AES256|aws:kms`` and ``kms_key_id=..`` may follow.
            A :class:`Location` comes back as it is.

    Raises:
        LocationError: ``text`` is empty, of another scheme, or malformed.
    """
    if isinstance(text, Location):
        return text
    text = os.fspath(text)
    if not text.strip() or text != text.strip() or "\0" in text:
        raise LocationError(f"location is {text!r}, which names nothing; {ACCEPTED}")
    match = _SCHEME.match(text)
    if match is None:
        # pathlib and shells turn s3:// into s3:/, which would silently become a local folder.
        if re.match(r"(s3|file):", text):
            raise LocationError(
                f"location is {text!r}, which lacks a slash; {ACCEPTED}"
                f" (did you mean {re.sub(r':/*', '://', text, count=1)}?)"
            )
        return _local(text)
    if match[1] == "s3":
        return _s3(text)
    if match[1] == "file":
        host, slash, path = text[match.end() :].partition("/")
        if host not in ("", "localhost") or not slash:
            raise LocationError(f"location is {text!r}, which is on host {host!r}; {ACCEPTED}")
        return _local("/" + unquote(path))
    raise LocationError(f"location is {_redacted(text)!r}, a scheme not supported; {ACCEPTED}")


def _local(text: str) -> Location:
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise LocationError(f"location is {text!r}, whose user has no home; {ACCEPTED}") from error
    return Location(scheme="file", key=os.path.abspath(path))


def _s3(text: str) -> Location:
    # Not urlsplit: '#' and ';' are ordinary characters in a key.
    address, _, query = text.removeprefix("s3://").partition("?")
    bucket, _, key = address.partition("/")
    key = key.strip("/")
    if "@" in bucket or ":" in bucket:
        raise LocationError(
            f"location is {_redacted(text)!r}, and an address must not carry credentials;"
            " expected s3://bucket/prefix with credentials in the environment or AWS profile"
        )
    if not _BUCKET.fullmatch(bucket):
        raise LocationError(
            f"location is {text!r}, whose bucket is {bucket!r}; expected s3://bucket/prefix"
        )
    if key and _has_bad_segment(key):
        raise LocationError(
            f"location is {text!r}, whose prefix has an empty, '.' or '..' part;"
            f" expected s3://bucket/prefix (did you mean s3://{bucket}/{_cleaned(key)}?)"
        )
    options = _options(query, where=f"location is 's3://{bucket}/{key}'")
    return Location(scheme="s3", bucket=bucket, key=key, **options)  # type: ignore[arg-type]


def _options(query: str, *, where: str) -> dict[str, str | None]:
    """The fields of a :class:`Location` that ``query`` sets."""
    pairs = parse_qsl(query, keep_blank_values=True)
    options: dict[str, str | None] = dict(pairs)
    for option, value in pairs:
        if option not in _S3_OPTIONS or not value or "@" in value:
            # The value may be a secret that somebody put there, so only the name is shown.
            raise LocationError(
                f"{where}, whose option {option!r} is unknown or has no usable value;"
                f" expected one of {', '.join(_S3_OPTIONS)}"
            )
    url_scheme, separator, host = (options.pop("endpoint_override", None) or "").rpartition("://")
    scheme = options.pop("scheme", None) or (url_scheme if separator else None)
    if scheme not in (None, "http", "https"):
        raise LocationError(f"{where}, whose scheme is {scheme!r}; expected http or https")
    encryption = options.get("server_side_encryption")
    if encryption not in (None, "AES256", "aws:kms"):
        raise LocationError(
            f"{where}, whose server_side_encryption is {encryption!r}; expected AES256 or aws:kms"
        )
    if "kms_key_id" in options and encryption != "aws:kms":
        raise LocationError(
            f"{where}, whose kms_key_id would be ignored;"
            " expected it only beside server_side_encryption=aws:kms"
        )
    return {
        **options,
        "endpoint_override": host.rstrip("/") or None,
        "endpoint_scheme": scheme,
    }


def _has_bad_segment(path: str) -> bool:
    return any(segment in ("", ".", "..") for segment in path.split("/"))


def _cleaned(key: str) -> str:
    return "/".join(part for part in key.split("/") if part not in ("", ".", ".."))


def _redacted(text: str) -> str:
    """``text`` without what may be a secret: anything before an ``@`` and after a ``?``."""
    scheme, _, rest = text.partition("://")
    return f"{scheme}://{re.sub(r'^[^/]*@', '', rest).partition('?')[0]}"
