"""What kills cost a run: time, and nothing else.

    python -m benchmarks.survival [--kills 10] [--jobs sophon sep] [--what worker node ...]

On a local cluster of several Ray nodes, with an S3 server as storage, the same small job runs on
two workers, once for each kind of disturbance. A run is disturbed by kill -9 as often as asked, at
random moments: as many of its rounds, or blocks, are drawn, without repetition, and each is struck
once the run has come that far and has its workers, after a random part of a round's time.

- *worker*: the process of one of the two.
- *node*: all processes of a Ray node that has a worker; a spare one is there, each time.
- *notice*: as *node*, said to Ray 15 s before, in a run that would not checkpoint by itself.
- *driver*: the command itself, which is then given again.
- *controller*: Ray Train's, which watches the workers.
- *elastic*: with `workers: [1, 2]` and no spare node, a node is killed, and another joins once the
  run goes on with one worker.

A run counts as equal if it ended, and its weights differ from the undisturbed run's by at most 1e-5
of their norm (SOPHON: sums are taken in another order), or its files by nothing (SEP). Time lost is
what it took longer than the undisturbed run, starts of processes included, divided by the number of
kills.
"""

import argparse
import dataclasses
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.driver import Driver
from benchmarks.environment import describe_environment
from benchmarks.local_cluster import CONTROLLER, WORKER, LocalCluster, local_cluster
from benchmarks.s3_server import s3_server
from benchmarks.small_jobs import HALVES, commit_classifier, commit_trajectory
from protection.models import ModelConfig
from protection.sep.config import SepConfig
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.image_sets import ImageSetConfig
from ray_jobs.protect_data import ProtectData
from ray_jobs.protect_model import ProtectModel
from storage.checkpoints import read_weights
from storage.commit import read_manifest
from storage.location import Location

KILLS = ("worker", "node", "notice", "driver", "controller", "elastic")
# A hang is a failure, too.
LONGEST_SECONDS = 600.0
NETWORK = ModelConfig(architecture="tests.conftest:TinyNetwork", image_size=8)
FIXED = {"workers": 2, "wait_seconds": 120, "checkpoint_interval_seconds": 2}
NOTICE_SECONDS = 15
UNTIL_NOTICE = {**FIXED, "checkpoint_interval_seconds": 10_000}
ELASTIC = {**FIXED, "workers": (1, 2), "resize_interval_seconds": 5}


class Job(NamedTuple):
    """A job of the command line, and how two of its outputs compare."""

    verb: str
    recipe: Any
    is_equal: Callable[[str, str], bool]


def main() -> None:
    """Run every job undisturbed, then disturbed; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10, help="in each run")
    parser.add_argument("--jobs", nargs="+", choices=["sophon", "sep"], default=["sophon", "sep"])
    parser.add_argument("--what", nargs="+", choices=KILLS, default=KILLS)
    parser.add_argument("--rounds", type=int, default=60, help="of SOPHON")
    parser.add_argument("--blocks", type=int, default=45, help="of SEP")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"# What kills cost a run\n\n{describe_environment()}")
    print(f"Seed {options.seed}; every process has one thread.\n")
    print("| job | killed | kills | ended | equal | undisturbed | disturbed | time lost a kill |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with s3_server() as server, local_cluster(3) as cluster, tempfile.TemporaryDirectory() as home:
        jobs = prepare(server.location, options)
        for name in options.jobs:
            measure(name, jobs[name], server.location, cluster, Path(home), options)


def prepare(bucket: Location, options: argparse.Namespace) -> dict[str, Job]:
    """Commit what the jobs start from, and return them without cluster and output."""
    commit_classifier(bucket / "five", NETWORK)
    commit_trajectory(bucket / "trajectory", NETWORK, 4)
    adversary = StrategyFamily(optimizers=["sgd", "adam"], finetune_lrs=[0.01], batch_sizes=[16])
    sophon = SophonConfig(
        rounds=options.rounds,
        episodes_per_round=6,
        episode_length=16,
        adversary=[adversary],
        reinforcement_batch_size=32,
        reinforcement_shards=3,
        max_original_drop=1.0,
    )
    sep = SepConfig(epsilon_levels=8, steps=30, members=3, batch_size=32)
    model_job = ProtectModel(
        model=str(bucket / "five"),
        original=HALVES[0],
        restricted=HALVES[1:],
        output="",
        sophon=sophon,
    )
    data_job = ProtectData(
        dataset=ImageSetConfig(source="digits:train", max_images=32 * options.blocks),
        trajectory=str(bucket / "trajectory"),
        output="",
        sep=sep,
        block_size=32,
    )
    return {
        "sophon": Job("protect-model", model_job, same_weights),
        "sep": Job("protect-data", data_job, same_parts),
    }


def same_weights(one: str, other: str) -> bool:
    """Whether two models are equal but for the order of sums."""
    a, b = read_weights(one), read_weights(other)
    return all(
        (tensor.double() - b[name].double()).norm() <= 1e-5 * tensor.double().norm()
        for name, tensor in a.items()
    )


def same_parts(one: str, other: str) -> bool:
    """Whether two datasets are the same bytes."""
    return read_manifest(one).parts == read_manifest(other).parts


def measure(
    name: str,
    job: Job,
    bucket: Location,
    cluster: LocalCluster,
    home: Path,
    options: argparse.Namespace,
) -> None:
    """Run one job undisturbed, then print a row for each kind of kill."""
    expected = bucket / f"{name}-undisturbed"
    began = time.monotonic()
    driver = begin(job, FIXED, expected, cluster, home)
    assert driver.ended(), driver.said()
    undisturbed = time.monotonic() - began
    times = [row["time"] for row in driver.rows()]
    total = driver.progress()
    one = (times[-1] - times[0]) / (total - 1)
    print(f"{name}: {total}, {one:.2f} s each", file=sys.stderr)
    for what in options.what:
        rng = random.Random(f"{options.seed}-{name}-{what}")
        output = bucket / f"{name}-{what}"
        config = {"elastic": ELASTIC, "notice": UNTIL_NOTICE}.get(what, FIXED)
        began = time.monotonic()
        set_nodes(cluster, is_spare=what != "elastic")
        failures = 0 if what == "notice" else options.kills
        struck: set[str] = set()
        driver = begin(job, {**config, "max_failures": failures}, output, cluster, home)
        # The last fifth is left out: the run might be over before it is struck.
        for number in sorted(rng.sample(range(1, 4 * total // 5), options.kills)):
            driver.wait_for_progress(number)
            # Not those of the kill before: any loss ends all workers, and Ray says so later.
            workers = cluster.wait_for_actors(WORKER, 2, seconds=LONGEST_SECONDS, besides=struck)
            struck |= {worker.actor_id for worker in workers}
            time.sleep(rng.random() * one)
            disturb(what, driver, cluster, rng)
            set_nodes(cluster, is_spare=what != "elastic")
            print(
                f"{name} {what} after {number} at {time.monotonic() - began:.1f} s", file=sys.stderr
            )
        is_ended = driver.ended()
        seconds = time.monotonic() - began
        is_equal = is_ended and job.is_equal(str(expected), str(output))
        if not is_equal:
            print(driver.said(), file=sys.stderr)
        print(
            f"| {job.verb} | {what} | {options.kills} | {'yes' if is_ended else 'NO'} |"
            f" {'yes' if is_equal else 'NO'} | {undisturbed:.0f} s | {seconds:.0f} s |"
            f" {(seconds - undisturbed) / options.kills:.0f} s |",
            flush=True,
        )


def begin(
    job: Job, config: dict[str, Any], output: Location, cluster: LocalCluster, home: Path
) -> Driver:
    """Give the command of ``job`` on so many workers."""
    recipe = dataclasses.replace(job.recipe, cluster=GroupedClusterConfig(**config))
    return Driver(
        job.verb,
        recipe,
        output,
        home=home,
        address=cluster.address,
        longest_seconds=LONGEST_SECONDS,
    )


def set_nodes(cluster: LocalCluster, *, is_spare: bool) -> None:
    """Make it two nodes, or three if a killed one is to be replaced at once."""
    while cluster.num_nodes < 2 + is_spare:
        cluster.add_node()
    while cluster.num_nodes > 2 + is_spare:
        cluster.remove_node()


def disturb(what: str, driver: Driver, cluster: LocalCluster, rng: random.Random) -> None:
    """Kill it."""
    if what == "driver":
        driver.kill_and_give_again()
    elif what == "node":
        cluster.kill_node_of(WORKER, rng)
    elif what == "notice":
        going = cluster.give_notice_to_node_of(WORKER, rng, seconds=NOTICE_SECONDS)
        time.sleep(NOTICE_SECONDS)
        going()
    elif what == "elastic":
        cluster.wait_for_actors(WORKER, 2, seconds=60)
        cluster.kill_node_of(WORKER, rng)
        cluster.wait_for_actors(WORKER, 1, seconds=120)
        cluster.add_node()
        cluster.wait_for_actors(WORKER, 2, seconds=120)
    else:
        cluster.kill_actor(WORKER if what == "worker" else CONTROLLER, rng)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
