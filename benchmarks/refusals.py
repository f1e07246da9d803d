"""What is said, and how soon, where a run cannot go on.

    python -m benchmarks.refusals [--only NAME ...]

Each row is a command of its own against a local cluster of several Ray nodes that lacks something,
with an S3 server as storage; `full disk` mounts a small file system, and is left out where that is
not allowed. What a node lacks comes by the environment of its processes: a module that cannot be
imported stands before the real one, a proxy that nobody runs stands before S3.
"""

import argparse
import dataclasses
import errno
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.driver import Driver
from benchmarks.environment import describe_environment
from benchmarks.local_cluster import ROOT, WORKER, LocalCluster, local_cluster
from benchmarks.s3_server import s3_server
from benchmarks.small_jobs import HALVES, commit_classifier
from benchmarks.survival import NETWORK
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.protect_model import ProtectModel
from storage.location import Location, parse_location

LONGEST_SECONDS = 300.0


def main() -> None:
    """Run every case and print what it said."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    print(f"# What is said where a run cannot go on\n\n{describe_environment()}")
    print("| what | exit code | after | message |\n|---|---|---|---|", flush=True)
    for name in options.only:
        with ExitStack() as stack:
            server = stack.enter_context(s3_server())
            home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            cluster = stack.enter_context(local_cluster(1))
            commit_classifier(server.location / "model", NETWORK)
            job = a_job(str(server.location / "model"))
            began = time.monotonic()
            driver = CASES[name](stack, job, server.location / "protected", cluster, home)
            driver.ended()
            seconds = time.monotonic() - began
            said = driver.said().strip().splitlines()[-1].replace("|", "\\|")
            print(
                f"| {name} | {driver.process.returncode} | {seconds:.0f} s | {said} |", flush=True
            )


def a_job(model: str) -> ProtectModel:
    """Long enough for something to happen in it."""
    family = StrategyFamily(finetune_lrs=[0.01], batch_sizes=[16])
    sophon = SophonConfig(
        rounds=200,
        episodes_per_round=4,
        adversary=[family],
        reinforcement_batch_size=32,
        max_original_drop=1.0,
    )
    return ProtectModel(
        model=model, original=HALVES[0], restricted=HALVES[1:], output="", sophon=sophon
    )


def begin(
    job: ProtectModel, output: Location, cluster: LocalCluster, home: Path, **config: Any
) -> Driver:
    """Give the command."""
    config = {"wait_seconds": 20, "max_failures": 1, "checkpoint_interval_seconds": 1, **config}
    recipe = dataclasses.replace(job, cluster=GroupedClusterConfig(**config))
    return Driver(
        "protect-model",
        recipe,
        output,
        home=home,
        address=cluster.address,
        longest_seconds=LONGEST_SECONDS,
    )


Case = Callable[[ExitStack, ProtectModel, Location, LocalCluster, Path], Driver]


def too_small(
    _: ExitStack, job: ProtectModel, output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """Three workers where one fits."""
    return begin(job, output, cluster, home, workers=3)


def never_grew(
    _: ExitStack, job: ProtectModel, output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """A cluster that was said to grow."""
    return begin(job, output, cluster, home, workers=3, autoscaling=True)


def all_nodes_lost(
    _: ExitStack, job: ProtectModel, output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """The only node goes, and none comes."""
    cluster.add_node()
    driver = begin(job, output, cluster, home, workers=(1, 2))
    driver.wait_for_progress(1)
    while cluster.num_nodes:
        cluster.remove_node()
    return driver


def no_code(
    stack: ExitStack, job: ProtectModel, output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """A machine on which Ringfence is half installed."""
    broken = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "storage"
    broken.mkdir()
    (broken / "__init__.py").write_text("import a_package_that_is_missing\n")
    cluster.add_node(PYTHONPATH=f"{broken.parent}:{ROOT}")
    return begin(job, output, cluster, home, workers=2)


def no_s3(
    _: ExitStack, job: ProtectModel, output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """A machine without a way to S3."""
    cluster.add_node(HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9")
    return begin(job, output, cluster, home, workers=2)


def late_no_s3(
    _: ExitStack, job: ProtectModel, output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """As before, but the machine came when the run was under way."""
    driver = begin(job, output, cluster, home, workers=(1, 2), resize_interval_seconds=1)
    driver.wait_for_progress(1)
    cluster.add_node(
        HTTP_PROXY="http://127.0.0.1:9",
        http_proxy="http://127.0.0.1:9",
        RINGFENCE_S3_TOTAL_SECONDS="5",
    )
    return driver


def full_disk(
    stack: ExitStack, job: ProtectModel, _: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """Checkpoints fill a disk of a megabyte; two workers, of which one writes."""
    cluster.add_node()
    small = stack.enter_context(small_disk())
    output = parse_location(small / "protected")
    driver = begin(job, output, cluster, home, workers=2, keep_checkpoints=1)
    cluster.wait_for_actors(WORKER, 2, seconds=120)
    with suppress_full(), (small / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return driver


@contextmanager
def small_disk() -> Iterator[Path]:
    """A file system of a megabyte."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def suppress_full() -> Iterator[None]:
    """Go on where the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise


CASES: dict[str, Case] = {
    "cluster too small": too_small,
    "cluster never grew": never_grew,
    "all nodes lost": all_nodes_lost,
    "code cannot be imported on a node": no_code,
    "S3 unreachable from a node": no_s3,
    "S3 unreachable from a node that came later": late_no_s3,
    "full disk": full_disk,
}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
