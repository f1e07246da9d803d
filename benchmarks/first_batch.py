"""How long until the first batch, and how fast images follow: S3 against a local disk.

    python -m benchmarks.first_batch --data FOLDER

FOLDER has ``cifar10-train.parquet``, which is cut into shards of row groups of 1,000 images; the
same shards are read from a local folder, from an S3 prefix, and from a commit on S3 without and
with what this machine keeps of it. Every row is measured in a process of its own, and the clock
starts where all is imported and `open_dataset` is called. "Pixels" are decoded batches as training
reads them; "encoded" is `ImageDataset.digest` of them all, which decodes nothing and so shows what
storage alone delivers.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import NamedTuple

import boto3  # noqa: F401 - so that no row pays for loading it
import pyarrow.parquet as pq
import torch

from benchmarks.environment import describe_environment
from benchmarks.s3_server import S3Server, s3_server
from storage.blobs import open_blobs
from storage.commit import commit
from storage.datasets import open_dataset

PLACES = ("local folder", "S3 prefix", "S3 commit, first time", "S3 commit, kept")
ORDERS = ("in order", "shuffled", "shuffled, memory for a fifth")
GROUP_ROWS = 1000
BATCH = 128
# In that little memory a batch reads most row groups anew, so a few batches show it.
TIGHT_IMAGES = 10 * BATCH


class Case(NamedTuple):
    """One row of the table."""

    order: str
    place: str
    latency_ms: int


class Run(NamedTuple):
    """The figures of one row, measured once."""

    first_batch_seconds: float
    pixels_per_second: float
    encoded_per_second: float | None
    requests: float
    mebibytes: float


def main() -> None:
    """Run every case in fresh processes, repeat by repeat, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--shards", type=int, default=10)
    parser.add_argument("--latency-ms", type=int, nargs="+", default=[0, 30])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000, help="decoded in each run")
    parser.add_argument("--run", nargs=3, metavar=("CASE", "FOLDER", "PORT"))
    options = parser.parse_args()
    if options.run is not None:
        case, folder, port = options.run
        server = S3Server(int(port))
        print(json.dumps(measure(Case(*json.loads(case)), Path(folder), server, options.images)))
        return
    if options.data is None:
        parser.error("--data is missing; expected the folder of cifar10-train.parquet")
    runs: dict[Case, list[Run]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, s3_server() as server:
        num_images = upload(options.data / "cifar10-train.parquet", Path(folder), server, options)
        for _ in range(options.repeats):
            for case in cases(options.latency_ms):
                runs[case].append(run(case, Path(folder), server, options.images))
    print(f"# First batch and images a second\n\n{describe_environment()}")
    print(
        f"{num_images:,} CIFAR-10 images in {options.shards} shards, batch {BATCH}, "
        f"{options.images:,} images decoded ({TIGHT_IMAGES:,} where memory is short); median and "
        f"range of {options.repeats} runs. Requests and MiB are those of opening the images and "
        "decoding so many.\n"
    )
    print(to_markdown(runs))


def upload(source: Path, folder: Path, server: S3Server, options: argparse.Namespace) -> int:
    """Cut ``source`` into shards, keep them in all three places, and return the image count."""
    table = pq.read_table(source)
    rows = -(-table.num_rows // options.shards)
    shards = {}
    for number in range(options.shards):
        file = io.BytesIO()
        pq.write_table(table.slice(number * rows, rows), file, row_group_size=GROUP_ROWS)
        shards[f"data-{number:05d}.parquet"] = file.getvalue()
    for location in (folder / "local", server.location / "prefix"):
        blobs = open_blobs(location)
        for name, data in shards.items():
            blobs.put(name, data)
    commit(server.location / "commit", shards, kind="dataset", description={})
    return int(table.num_rows)


def cases(latencies_ms: list[int]) -> Iterator[Case]:
    """The rows of the table, in its order."""
    for order in ORDERS:
        yield Case(order, PLACES[0], 0)
        for latency_ms in latencies_ms:
            for place in PLACES[1:]:
                yield Case(order, place, latency_ms)


def run(case: Case, folder: Path, server: S3Server, num_images: int) -> Run:
    """Measure one row once, in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.first_batch", "--images", str(num_images)]
    command += ["--run", json.dumps(case), str(folder), str(server.port)]
    return Run(*json.loads(subprocess.check_output(command)))


def measure(case: Case, folder: Path, server: S3Server, num_images: int) -> Run:
    """Measure one row once."""
    torch.set_num_threads(1)
    is_tight = case.order == ORDERS[2]
    num_images = TIGHT_IMAGES if is_tight else num_images
    with begun(case, folder, server) as source:
        started = time.monotonic()
        dataset = open_dataset(source, image_size=32, cache_bytes=9 * 2**20 if is_tight else 2**31)
        rng = torch.Generator().manual_seed(0)
        indices = torch.randperm(len(dataset), generator=rng)
        if case.order == ORDERS[0]:
            indices = indices.sort().values
        first, *rest = indices[:num_images].split(BATCH)
        dataset.read(first)
        first_batch = time.monotonic()
        for batch in rest:
            dataset.read(batch)
        rate = (num_images - BATCH) / (time.monotonic() - first_batch)
        traffic = server.traffic(latency_seconds=0)
    if is_tight:  # a digest takes images one by one, and here each would be a row group
        return Run(first_batch - started, rate, None, *traffic)
    with begun(case, folder, server) as source:
        dataset = open_dataset(source, image_size=32).subset(indices)
        opened = time.monotonic()
        dataset.digest()
        encoded_rate = len(dataset) / (time.monotonic() - opened)
    return Run(first_batch - started, rate, encoded_rate, *traffic)


@contextmanager
def begun(case: Case, folder: Path, server: S3Server) -> Iterator[str]:
    """Where the images are; this machine keeps nothing of them, or where the row says so all."""
    prefix, committed = server.location / "prefix", server.location / "commit"
    source = str({PLACES[0]: folder / "local", PLACES[1]: prefix}.get(case.place, committed))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["RINGFENCE_CACHE"] = cache
        if case.place == PLACES[3]:
            open_dataset(source, image_size=32)
        server.traffic(latency_seconds=case.latency_ms / 1000)
        yield source
        server.traffic(latency_seconds=0)


def to_markdown(runs: dict[Case, list[Run]]) -> str:
    """One row a case: median (lowest to highest)."""
    columns = ["images are in", "ms a request", "first batch, s", "pixels/s", "encoded/s"]
    columns += ["requests", "MiB"]
    lines = []
    for order in ORDERS:
        lines += [f"## {order.capitalize()}\n", f"| {' | '.join(columns)} |", "|---" * 7 + "|"]
        for case, of_case in runs.items():
            if case.order == order:
                first, pixels, encoded, requests, mebibytes = zip(*of_case, strict=True)
                figures = [spread(first, 2), spread(pixels, 0), spread(encoded, 0)]
                figures += [f"{median(requests):.0f}", f"{median(mebibytes):.1f}"]
                latency = str(case.latency_ms) if case.place != PLACES[0] else "-"
                lines.append(f"| {case.place} | {latency} | {' | '.join(figures)} |")
        lines.append("")
    return "\n".join(lines)


def spread(values: tuple[float | None, ...], digits: int) -> str:
    """Median and range, in words for a table; a dash where nothing was measured."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    low, high = min(known), max(known)
    return f"{median(known):,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


if __name__ == "__main__":
    main()
