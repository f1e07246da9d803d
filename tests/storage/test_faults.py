"""A bad day: a fifth of all requests goes wrong, and every commit is there and right afterwards.

The full-size version of this is ``benchmarks/storage_faults.py``.
"""

import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.commit import check_part, commit, read_manifest, read_part
from storage.location import Location
from storage.s3_blobs import S3Blobs
from tests.storage.faulty_proxy import FAULTS, Answer, FaultyProxy, at_random
from tests.storage.test_round_trips import PARTS, THRESHOLD

NUM_COMMITS = 30


@pytest.mark.s3
def test_nothing_is_lost_or_wrong_where_a_fifth_of_all_requests_fails(
    proxied_location: Location, s3_location: Location, s3_proxy: FaultyProxy
) -> None:
    def contents(number: int) -> dict[str, bytes]:
        rng = random.Random(number)
        size = THRESHOLD + 1 if number % 10 == 0 else rng.randrange(100_000)
        return {"weights.bin": rng.randbytes(size), "metrics.json": b"%d" % number}

    def commit_and_read(number: int) -> dict[str, bytes]:
        place = proxied_location / str(number)
        blobs = S3Blobs(place, transfers=PARTS)
        manifest = commit(place, contents(number), kind="model", description={}, blobs=blobs)
        check_part(place, "weights.bin", manifest=manifest, blobs=blobs)
        return read(place, blobs)

    def read(place: Location, blobs: S3Blobs) -> dict[str, bytes]:
        manifest = read_manifest(place, blobs=blobs)
        return {name: read_part(place, name, blobs=blobs) for name in manifest.parts}

    s3_proxy.stall_seconds = 0.5
    s3_proxy.decide = at_random(0.2, seed=7)
    with ThreadPoolExecutor(3) as pool:  # as many jobs that share a store
        found = list(pool.map(commit_and_read, range(NUM_COMMITS)))
    kinds = [fault.code if isinstance(fault, Answer) else fault.value for fault in FAULTS]
    assert all(s3_proxy.counts[kind] for kind in kinds)
    for number in range(NUM_COMMITS):
        place = s3_location / str(number)  # past the proxy
        assert read(place, S3Blobs(place)) == found[number] == contents(number)
