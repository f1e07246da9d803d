"""How fast a large checkpoint goes to S3 and back, against AWS's own command line tool.

    python -m benchmarks.storage_throughput --aws PATH_OF_AWS [--megabytes 1000]

One file of random bytes, one S3 server: moto's, on this machine, in a process of its own, which is
slow and shared by both sides, so what is compared is the work around it. The rows take turns.

- *put_file, get_file*: the bytes, under their name at once or not at all.
- *stage, fetch_part*: with the SHA-256 of the file taken before, or compared after.
- *aws s3 cp*: with its defaults, and the second or so that it takes to start.
"""

import argparse
import os
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.environment import describe_environment
from benchmarks.s3_server import BUCKET, s3_server
from storage.blobs import open_blobs
from storage.commit import fetch_part, stage
from storage.location import parse_location
from storage.manifest import Manifest

AWS = "aws s3 cp"


def main() -> None:
    """Time every row in turn, several times over, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aws", required=True, help="path of the AWS command line tool")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, s3_server() as server:
        folder = Path(name)
        write_random(folder / "checkpoint", options.megabytes)
        directions = prepare(folder, server.endpoint, options.aws)
        seconds = {d: {row: [] for row in rows} for d, rows in directions.items()}
        before = peak_megabytes()
        for _ in range(options.repeats):
            for direction, rows in directions.items():
                for row, transfer in rows.items():  # interleaved: a busy moment hits all alike
                    started = time.perf_counter()
                    transfer()
                    seconds[direction][row].append(time.perf_counter() - started)
        above = peak_megabytes() - before
        check(folder)
    print(f"# Storage throughput\n\n{describe_environment()}")
    version = subprocess.run([options.aws, "--version"], capture_output=True, text=True, check=True)
    print(
        f"{options.megabytes} MB, {version.stdout.split()[0]}; median and range of"
        f" {options.repeats} runs. This process took {above:.0f} MB above what it had before.\n"
    )
    print("| direction | what | MB/s | against aws s3 cp |\n|---|---|---|---|")
    for direction, rows in seconds.items():
        base = statistics.median(rows[AWS])
        for row, taken in rows.items():
            rates = [options.megabytes / t for t in (statistics.median(taken), max(taken))]
            best = options.megabytes / min(taken)
            share = base / statistics.median(taken)
            print(
                f"| {direction} | {row} | {rates[0]:.0f} ({rates[1]:.0f} to {best:.0f}) |"
                f" {share:.2f} |"
            )


def write_random(path: Path, megabytes: int) -> None:
    """A file that nothing on the way can compress."""
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1_000_000))


def prepare(folder: Path, endpoint: str, aws: str) -> dict[str, dict[str, Callable[[], object]]]:
    """What to time: direction, row, transfer."""
    place = parse_location(f"s3://{BUCKET}/ours?endpoint_override={endpoint}&scheme=http")
    source, theirs = folder / "checkpoint", f"s3://{BUCKET}/theirs"
    blobs = open_blobs(place)
    part = stage(place, "checkpoint", source, blobs=blobs)  # also the warm-up
    manifest = Manifest(kind="model", created="", description={}, parts={"checkpoint": part})

    def cp(source: Path | str, target: Path | str) -> None:
        command = [aws, "s3", "cp", "--quiet", "--endpoint-url", f"http://{endpoint}"]
        subprocess.run([*command, str(source), str(target)], check=True)

    cp(source, theirs)
    return {
        "up": {
            AWS: lambda: cp(source, theirs),
            "put_file": lambda: blobs.put_file(part.path, source),
            "stage": lambda: stage(place, "checkpoint", source, blobs=blobs),
        },
        "down": {
            AWS: lambda: cp(theirs, folder / "cp"),
            "get_file": lambda: blobs.get_file(part.path, folder / "get_file"),
            "fetch_part": lambda: fetch_part(
                place, "checkpoint", folder / "fetch_part", manifest=manifest, blobs=blobs
            ),
        },
    }


def check(folder: Path) -> None:
    """All three copies are what was sent."""
    for copy in ("cp", "get_file", "fetch_part"):
        subprocess.run(["cmp", folder / "checkpoint", folder / copy], check=True)


def peak_megabytes() -> float:
    """Most memory that this process ever had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


if __name__ == "__main__":
    main()
