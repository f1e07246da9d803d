"""Every write says how the store is to encrypt it, where the address does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from storage.blobs import open_blobs
from storage.commit import commit, read_part
from storage.location import Location, parse_location
from storage.manifest import MANIFEST_NAME
from storage.s3_blobs import S3Blobs
from tests.storage.test_round_trips import PARTS, THRESHOLD

pytestmark = pytest.mark.s3
KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"


def stored(blobs: S3Blobs, location: Location, name: str) -> dict[str, Any]:
    target = location / name
    answer: dict[str, Any] = blobs._client.head_object(Bucket=target.bucket, Key=target.key)
    return answer


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("server_side_encryption=AES256", ("AES256", None)),
        (f"server_side_encryption=aws:kms&kms_key_id={KEY}", ("aws:kms", KEY)),
        ("server_side_encryption=aws:kms", ("aws:kms", None)),
    ],
)
def test_whatever_is_written_is_encrypted_as_the_address_says(
    options: str, expected: tuple[str | None, str | None], s3_location: Location, tmp_path: Path
) -> None:
    location = parse_location(f"{s3_location}&{options}")
    blobs = S3Blobs(location, transfers=PARTS)
    (tmp_path / "small").write_bytes(b"x")
    (tmp_path / "large").write_bytes(bytes(THRESHOLD + 1))
    blobs.put("put", b"x")
    blobs.put("put in parts", bytes(THRESHOLD + 1))
    blobs.put_if_absent("conditional put", b"x")
    blobs.put_file("file", tmp_path / "small")
    blobs.put_file("file in parts", tmp_path / "large")
    for name in blobs.list():
        found = stored(blobs, location, name)
        encryption = (found.get("ServerSideEncryption"), found.get("SSEKMSKeyId"))
        assert encryption == expected
    assert len(blobs.list()) == 5
    assert blobs.get("put in parts") == bytes(THRESHOLD + 1)


def test_commit_is_encrypted_whole_and_read_without_the_options(s3_location: Location) -> None:
    location = replace(s3_location, server_side_encryption="aws:kms", kms_key_id=KEY)
    manifest = commit(str(location), {"part": b"x"}, kind="model", description={})
    blobs = S3Blobs(location)
    for name in (MANIFEST_NAME, manifest.parts["part"].path):
        assert stored(blobs, location, name)["SSEKMSKeyId"] == KEY
    assert read_part(s3_location, "part") == b"x"
    # What a job keeps beside its output is under the same key.
    open_blobs(location.sibling(".run")).put("recipe.json", b"{}")
    assert stored(blobs, location.sibling(".run"), "recipe.json")["SSEKMSKeyId"] == KEY
