"""Whatever name and size: what is read is what was written, on disk and on S3."""

import random
import uuid
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.blobs import BlobStore, open_blobs
from storage.commit import check_part, commit, fetch_part, read_manifest, read_part
from storage.location import Location
from storage.s3_blobs import S3Blobs

# S3 takes no smaller parts than these, so a blob just above is one part and a bit.
THRESHOLD = 5 * 2**20
PARTS = TransferConfig(
    multipart_threshold=THRESHOLD,
    multipart_chunksize=THRESHOLD,
    preferred_transfer_client="classic",
)
SIZES = st.integers(0, 4096) | st.integers(THRESHOLD - 2, THRESHOLD + 2)
SEGMENTS = st.text(
    st.characters(exclude_categories=["C"], exclude_characters="/?"), min_size=1, max_size=20
).filter(lambda name: name not in (".", ".."))
NAMES = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)
PART_NAMES = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,30}", fullmatch=True)


def opened(location: Location) -> BlobStore:
    return open_blobs(location) if location.is_local else S3Blobs(location, transfers=PARTS)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("is_file", [False, True], ids=["bytes", "file"])
def test_blob_of_any_name_and_size_comes_back(
    is_file: bool, location: Location, tmp_path: Path
) -> None:
    blobs = opened(location)
    source, back = tmp_path / "source", tmp_path / "back"

    @settings(max_examples=25)
    @given(name=NAMES, size=SIZES)
    def round_trip(name: str, size: int) -> None:
        name = f"{uuid.uuid4().hex}/{name}"
        data = content(size)
        if is_file:
            source.write_bytes(data)
            blobs.put_file(name, source)
            blobs.get_file(name, back)
            assert back.read_bytes() == data
        else:
            blobs.put(name, data)
            assert blobs.get(name) == data
        with blobs.open(name) as opened_blob:
            assert opened_blob.seek(size // 2) == size // 2
            assert opened_blob.read() == data[size // 2 :]
        assert blobs.exists(name)
        assert blobs.list(name[:33]) == [name]
        blobs.delete(name)
        assert not blobs.exists(name)

    round_trip()


def test_any_set_of_parts_comes_back(location: Location, tmp_path: Path) -> None:
    @settings(max_examples=10)
    @given(sizes=st.dictionaries(PART_NAMES, SIZES, max_size=4), as_file=st.randoms())
    def round_trip(sizes: dict[str, int], as_file: random.Random) -> None:
        place = location / uuid.uuid4().hex
        blobs = opened(place)
        parts: dict[str, bytes | Path] = {name: content(size) for name, size in sizes.items()}
        for number, (name, data) in enumerate(parts.items()):
            if as_file.random() < 0.5:
                parts[name] = tmp_path / str(number)
                (tmp_path / str(number)).write_bytes(data)
        manifest = commit(place, parts, kind="model", description={"sizes": sizes}, blobs=blobs)
        assert read_manifest(place) == manifest
        for name, size in sizes.items():
            check_part(place, name, manifest=manifest)
            fetch_part(place, name, tmp_path / "back", manifest=manifest, blobs=blobs)
            assert (tmp_path / "back").read_bytes() == content(size)
            assert read_part(place, name, manifest=manifest) == content(size)

    round_trip()
