"""What becomes of commits and reads where a share of all requests to S3 goes wrong.

    python -m benchmarks.storage_faults [--commits 200]

Four writers commit weights of mixed sizes through a proxy that lets requests fail, each kind of
fault as often as the others: 500, 503 SlowDown, connection reset before the server saw the request
or after it was carried out, stall, truncated body, request carried out twice. Each writer reads
what it wrote through the same proxy; at the end everything is read once more past it.

- *lost*: the commit succeeded, and is not there in the end.
- *wrong*: a read succeeded and gave other bytes than were committed.
- *given up*: the commit or its read ended with an error.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.environment import describe_environment
from benchmarks.s3_server import BUCKET, s3_server
from storage.blobs import open_blobs
from storage.commit import commit, fetch_part, read_manifest, read_part
from storage.errors import StorageError
from storage.location import Location, parse_location
from tests.storage.faulty_proxy import FaultyProxy, at_random

KB, MB = 1000, 1_000_000
# Of 200 commits: sizes in bytes from, to (drawn evenly on a logarithmic scale), and how many.
SIZES = (
    (KB, 100 * KB, 120),
    (100 * KB, 10 * MB, 65),
    (10 * MB, 40 * MB, 12),
    (200 * MB, 200 * MB, 3),
)
NUM_WRITERS = 4
FROM_FILE_BYTES = 10 * MB
# A stall is noticed after a quarter of this; with the default of 120 the table would say nothing
# else, and take an hour.
TOTAL_SECONDS = "20"


def main() -> None:
    """Run once for every share of faults, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=200)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.2])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["RINGFENCE_S3_TOTAL_SECONDS"] = TOTAL_SECONDS
    sizes = drawn_sizes(options.commits, seed=options.seed)
    print(f"# Storage under faults\n\n{describe_environment()}")
    print(
        f"{len(sizes)} commits and reads by {NUM_WRITERS} writers, {sum(sizes) / 1e9:.2f} GB,"
        f" RINGFENCE_S3_TOTAL_SECONDS={TOTAL_SECONDS}.\n"
    )
    print("| faulty requests | requests | faults | lost | wrong | given up | time | x faultless |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    faultless_seconds = None
    kinds: Counter[str] = Counter()
    for share in options.shares:
        with s3_server() as server, tempfile.TemporaryDirectory() as folder:
            result = run(sizes, server.endpoint, Path(folder), share=share, seed=options.seed)
        outcomes, counts, seconds = result
        faultless_seconds = faultless_seconds or seconds
        num_requests = counts.pop("all")
        kinds += counts
        print(
            f"| {share:.0%} | {num_requests} | {counts.total()} | {outcomes['lost']} |"
            f" {outcomes['wrong']} | {outcomes['given up']} | {seconds:.0f} s |"
            f" {seconds / faultless_seconds:.2f} |",
            flush=True,
        )
    print(
        "\nFaults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) + "."
    )


def drawn_sizes(num_commits: int, *, seed: int) -> list[int]:
    """Sizes in the shares that `SIZES` says, in random order."""
    rng = random.Random(seed)
    total = sum(count for *_, count in SIZES)
    sizes = [
        round(low * (high / low) ** rng.random())
        for low, high, count in SIZES
        for _ in range(round(num_commits * count / total))
    ]
    rng.shuffle(sizes)
    return sizes


def run(
    sizes: list[int], endpoint: str, folder: Path, *, share: float, seed: int
) -> tuple[Counter[str], Counter[str], float]:
    """Outcomes, the proxy's counts, and seconds of all commits and first reads."""
    with FaultyProxy(endpoint, at_random(share, seed=seed)) as proxy:
        faulty, direct = (
            parse_location(f"s3://{BUCKET}/run?endpoint_override={host}&scheme=http")
            for host in (proxy.endpoint, endpoint)
        )
        started = time.monotonic()
        with ThreadPoolExecutor(NUM_WRITERS) as pool:
            outcomes = Counter(
                pool.map(
                    lambda number: commit_and_read(faulty, number, sizes[number], folder),
                    range(len(sizes)),
                )
            )
        seconds = time.monotonic() - started
    outcomes += Counter(read_again(direct, number, size) for number, size in enumerate(sizes))
    return outcomes, proxy.counts, seconds


def content(number: int, size: int) -> bytes:
    """The same bytes for the same number."""
    return random.Random(number).randbytes(size)


def commit_and_read(location: Location, number: int, size: int, folder: Path) -> str:
    """What became of commit ``number``: "right", "wrong" or "given up"."""
    place, data = location / str(number), content(number, size)
    blobs = open_blobs(place)
    source, back = folder / f"{number}.out", folder / f"{number}.in"
    try:
        if size < FROM_FILE_BYTES:
            commit(place, {"w": data}, kind="model", description={}, blobs=blobs)
            found = read_part(place, "w", blobs=blobs)
        else:
            source.write_bytes(data)
            commit(place, {"w": source}, kind="model", description={}, blobs=blobs)
            fetch_part(place, "w", back, blobs=blobs)
            found = back.read_bytes()
    except StorageError as error:
        print(f"commit {number}: {error}", file=sys.stderr)
        return "given up"
    finally:
        source.unlink(missing_ok=True)
        back.unlink(missing_ok=True)
    return "right" if found == data else "wrong"


def read_again(location: Location, number: int, size: int) -> str:
    """What commit ``number`` is in the end: "there", "wrong" or "lost"."""
    place = location / str(number)
    blobs = open_blobs(place)
    try:
        part = read_manifest(place, blobs=blobs).parts["w"]
        data = blobs.get(part.path)
    except StorageError:
        return "lost"
    return "there" if data == content(number, size) else "wrong"


if __name__ == "__main__":
    main()
