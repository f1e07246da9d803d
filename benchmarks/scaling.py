"""What more workers are worth: measured with one and two, predicted for 8, 64 and 512.

    python -m benchmarks.scaling [--rounds 16] [--blocks 20]

1. *Bare loops*: rounds of SOPHON of several lengths, and blocks of SEP, in this process, without
   Ray. They give the costs in `scaling_model.py`. *Side by side*: the same in two processes at
   once, which know nothing of each other: what the machine's second core is worth, and the most
   that two workers can do on it.
2. *All-reduce* between two processes on this machine, of several sizes: latency and bandwidth.
3. *Ray*: the same work by `protect-model` and `protect-data` on one and on two workers. Seconds of
   a round are those that the run itself reports.
4. *Where a worker's time goes* in those runs: computing, waiting for the other (or summing), and
   all that Ray and the reports take. These are shares of the same seconds, so they hold on a
   machine whose speed changes from run to run, where ratios between runs do not.
5. The model's answer for 2 is compared with what was measured, and its answers for more are given
   for links and step times of GPUs that are stated, not measured.

Every worker has one thread. On a machine of two cores the second worker shares its core with Ray
and everything else that runs. Where others have a part of the machine, the same round takes up to
three times as long from one minute to the next, so what is compared is the *fastest third* of the
rounds, by its median; that of all of them stands beside it.
"""

import argparse
import functools
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import ray.train
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from benchmarks.environment import describe_environment
from benchmarks.local_cluster import ROOT
from benchmarks.scaling_model import (
    Link,
    Shape,
    fit_costs,
    fit_link,
)
from benchmarks.scaling_prediction import print_predictions
from benchmarks.sep_crafting import NETWORKS
from benchmarks.small_jobs import HALVES, commit_classifier, commit_trajectory
from protection.models import Classifier
from protection.sep.config import SepConfig
from protection.sep.gradients import build_ensemble
from protection.sep.trajectory import Member, freeze
from protection.sophon.adversary import StrategyFamily
from protection.sophon.algorithm import Domains, protect, start
from protection.sophon.config import SophonConfig
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.domains import open_domain
from ray_jobs.image_sets import ImageSetConfig, open_set
from ray_jobs.launch import launch
from ray_jobs.protect_data import ProtectData
from ray_jobs.protect_model import ProtectModel
from ray_jobs.protected_blocks import perturb_block, plan, store_block
from ray_jobs.reporting import METRICS_FILE
from ray_jobs.runs import Run
from storage.location import parse_location

NETWORK = NETWORKS["small"]
# Episodes, their length, reinforcement steps; the first is what Ray then runs.
ROUNDS = [(2, 24, 2), (2, 8, 2), (4, 8, 2), (2, 8, 8), (1, 24, 1)]
SHARDS = 2
SEP = SepConfig(epsilon_levels=8, steps=20, members=4, batch_size=64)
BLOCK_SIZE = 64


class Seconds(NamedTuple):
    """Of one round, or block, but for the first."""

    fastest: float
    """Median of the fastest third."""
    median: float
    """Of all."""


def main() -> None:
    """Measure, fit, compare, predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16, help="of SOPHON, for each row")
    parser.add_argument("--blocks", type=int, default=20, help="of SEP, for each row")
    parser.add_argument("--step-ms", type=float, default=20.0, help="of a GPU, for predictions")
    options = parser.parse_args()
    print(f"# What more workers are worth\n\n{describe_environment()}")
    with tempfile.TemporaryDirectory() as folder:
        sophon(Path(folder), options)
        sep(Path(folder), options)
    print_predictions(options.step_ms / 1000)


def sophon(folder: Path, options: argparse.Namespace) -> None:
    """Rounds a second: bare, then with Ray on one worker and on two."""
    model = commit_classifier(parse_location(folder / "model"), NETWORK)
    shapes = [shape_of(model, *numbers) for numbers in ROUNDS]
    bare = [bare_round_seconds(model, config_of(shape, options.rounds)) for shape in shapes]
    costs, link = fit_costs(shapes, [each.fastest for each in bare]), timed_link()
    print("## SOPHON\n\n| episodes | length | reinforcement | bare | of all | model |")
    print("|---|---|---|---|---|---|")
    for shape, seconds in zip(shapes, bare, strict=True):
        fitted = costs.round_seconds(shape, link, workers=1)
        print(
            f"| {shape[0]} | {shape[1]} | {shape[2]} | {seconds.fastest:.3f} s |"
            f" {seconds.median:.3f} s | {fitted:.3f} s |"
        )
    print(
        f"\nCosts: an episode {costs.episode:.4f} s and {costs.step:.4f} s a step, a reinforcement "
        f"step {costs.reinforcement:.4f} s, the rest {costs.rest:.4f} s; {shapes[0].parameters} "
        f"parameters. Link between two processes here: {1e6 * link.latency_seconds:.0f} us, "
        f"{link.bytes_per_second / 1e9:.2f} GB/s.\n"
    )
    pair = side_by_side(bare_round_seconds, model, config_of(shapes[0], options.rounds))
    measured = {
        workers: ray_round_seconds(folder, config_of(shapes[0], options.rounds), workers)
        for workers in (1, 2)
    }
    two = costs.round_seconds(shapes[0], link, workers=2)
    rows = {
        "bare": (bare[0], ""),
        "bare, two side by side": (pair, f"{2 * bare[0].fastest / pair.fastest:.2f}x"),
        "Ray, 1 worker": (
            measured[1],
            f"{measured[1].fastest / bare[0].fastest - 1:+.1%} against bare",
        ),
        "Ray, 2 workers": (measured[2], f"{measured[1].fastest / measured[2].fastest:.2f}x"),
    }
    print("| round of the first row | seconds | of all | episodes a second |\n|---|---|---|---|")
    for name, (seconds, change) in rows.items():
        print(f"| {name} | {seconds.fastest:.3f} | {seconds.median:.3f} | {change} |")
    print(f"| model, 2 workers | {two:.3f} | | {two / measured[2].fastest - 1:+.1%} seconds |\n")
    show_shares(folder, "protected")


def shape_of(model: Classifier, episodes: int, length: int, steps: int) -> Shape:
    """A round of those numbers on that model."""
    return Shape(episodes, length, steps, SHARDS, sum(p.numel() for p in model.parameters()))


def config_of(shape: Shape, rounds: int) -> SophonConfig:
    """A job of such rounds."""
    return SophonConfig(
        rounds=rounds,
        episodes_per_round=shape.episodes,
        episode_length=shape.episode_length,
        adversary=[StrategyFamily(finetune_lrs=[0.01], batch_sizes=[64])],
        reinforcement_steps=shape.reinforcement_steps,
        reinforcement_batch_size=64,
        reinforcement_shards=shape.shards,
        validation_images=100,
        max_original_drop=1.0,
    )


def bare_round_seconds(model: Classifier, config: SophonConfig) -> Seconds:
    """Of the rounds in this process."""
    domains = [open_domain(half, image_size=NETWORK.image_size) for half in HALVES]
    images = Domains(domains[0].train, domains[0].validation, [domains[1].train])
    return summary(durations(protect(start(model, config), images, config=config)))


def summary(seconds: list[float]) -> Seconds:
    """Of all but the first."""
    ordered = sorted(seconds[1:])
    fastest = ordered[: max(1, len(ordered) // 3)]
    return Seconds(statistics.median(fastest), statistics.median(ordered))


def side_by_side(work: Callable[..., Seconds], *arguments: Any) -> Seconds:
    """Mean of what ``work`` returns in two processes at once."""
    with ProcessPoolExecutor(2, mp.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        list(pool.map(time.sleep, [10, 10]))  # both have started and imported
        both = list(pool.map(work, *([argument] * 2 for argument in arguments)))
    return Seconds(*(statistics.mean(numbers) for numbers in zip(*both, strict=True)))


def durations(rounds: Iterator[Any]) -> list[float]:
    """Seconds of each."""
    seconds, before = [], time.perf_counter()
    for _ in rounds:
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    return seconds


def ray_round_seconds(folder: Path, config: SophonConfig, workers: int) -> Seconds:
    """Of the rounds of a run, as it reports them."""
    output = folder / f"protected-{workers}"
    run_timed(
        "protect-model",
        ProtectModel(
            model=str(folder / "model"),
            original=HALVES[0],
            restricted=HALVES[1:],
            output=str(output),
            sophon=config,
            cluster=GroupedClusterConfig(workers=workers),
        ),
    )
    return summary(reported_seconds(output))


class Shares(NamedTuple):
    """Of the time between a worker's first round and the end of its last."""

    computing: float
    waiting: float
    """In collectives: for the slower worker, and for the sum itself."""
    ray: float
    """Reports, their barriers, and what else is done between rounds."""


def run_timed(verb: str, job: Any) -> None:
    """As the command, with clocks in its workers."""
    own = importlib.import_module(f"ray_jobs.{verb.replace('-', '_')}")
    launch(
        own.absolute(job),
        verb=verb,
        loop=functools.partial(timed_loop, own.__name__),
        format_row=own.format_row,
        step_field={"protect-model": "round_index", "protect-data": "blocks_done"}[verb],
    )


def timed_loop(name: str, config: dict[str, Any]) -> dict[str, Any]:
    """The train loop of the job in module ``name``; leaves its `Shares` beside the curves."""
    from ray_jobs import workers

    own: Any = importlib.import_module(name)
    report_rounds, sum_over_workers = own.report_rounds, workers.sum_over_workers
    collective = 0.0

    def timed_sum(tensors: Any) -> None:
        nonlocal collective
        began = time.perf_counter()
        sum_over_workers(tensors)
        collective += time.perf_counter() - began

    def timed_rounds(rounds: Iterator[Any]) -> Iterator[Any]:
        nonlocal collective
        yield next(rounds)  # the first warms up, and its report waits for whoever starts later
        began, collective, computing = time.perf_counter(), 0.0, 0.0
        is_last = False
        while not is_last:
            before, waited = time.perf_counter(), collective
            one = next(rounds, None)
            computing += time.perf_counter() - before - (collective - waited)
            if not (is_last := one is None):
                yield one
        total = time.perf_counter() - began
        shares = Shares(computing / total, collective / total, 1 - (computing + collective) / total)
        rank = ray.train.get_context().get_world_rank()
        path = config["run"].logs / f"shares-{rank}.json"
        path.write_text(json.dumps(shares))

    own.report_rounds = lambda rounds, *rest, **options: report_rounds(
        timed_rounds(rounds), *rest, **options
    )
    workers.sum_over_workers = timed_sum
    result: dict[str, Any] = own.train_loop_per_worker(config)
    return result


def show_shares(folder: Path, name: str) -> None:
    """A row for each number of workers; the mean over them."""
    print("| workers | computing | waiting and summing | Ray and reports |\n|---|---|---|---|")
    for workers in (1, 2):
        logs = folder / f"{name}-{workers}.run"
        each = [Shares(*json.loads(path.read_text())) for path in logs.glob("shares-*.json")]
        assert len(each) == workers
        means = (statistics.mean(numbers) for numbers in zip(*each, strict=True))
        print(f"| {workers} | {' | '.join(f'{share:.1%}' for share in means)} |")
    print(flush=True)


def reported_seconds(output: Path) -> list[float]:
    """Of each round, or block of each worker, as the run said."""
    lines = (output.parent / f"{output.name}.run" / METRICS_FILE).read_text().splitlines()
    return [json.loads(line)["seconds"] for line in lines]


def timed_link() -> Link:
    """Two processes that sum over each other, here."""
    sizes = [16, 10_000, 1_000_000, 8_000_000, 40_000_000]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_all_reduces, args=(folder, sizes), nprocs=2)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    return fit_link(sizes, seconds, workers=2)


def _all_reduces(rank: int, folder: str, sizes: list[int]) -> None:
    torch.set_num_threads(1)
    where = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    medians = []
    for size in sizes:
        tensor, taken = torch.zeros(size // 8, dtype=torch.float64), []
        for _ in range(12):
            dist.barrier()
            began = time.perf_counter()
            dist.all_reduce(tensor)
            taken.append(time.perf_counter() - began)
        medians.append(statistics.median(taken[2:]))
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(medians))
    dist.destroy_process_group()


def sep(folder: Path, options: argparse.Namespace) -> None:
    """Images a second: bare, then with Ray on one worker and on two."""
    trajectory = folder / "trajectory"
    models = commit_trajectory(parse_location(trajectory), NETWORK, SEP.members)
    bare = bare_block_seconds(folder, models, options.blocks)
    print("## SEP\n\n| | seconds a block | of all | images/s | |\n|---|---|---|---|---|")
    show("bare", bare, 1, "")
    pair = side_by_side(bare_block_seconds, folder, models, options.blocks)
    show("bare, two side by side", pair, 2, f"{2 * bare.fastest / pair.fastest:.2f}x")
    alone = None
    for workers in (1, 2):
        output = folder / f"dataset-{workers}"
        run_timed(
            "protect-data",
            ProtectData(
                dataset=_digits(options.blocks),
                trajectory=str(trajectory),
                output=str(output),
                sep=SEP,
                block_size=BLOCK_SIZE,
                cluster=GroupedClusterConfig(workers=workers),
            ),
        )
        seconds = summary(reported_seconds(output))
        if alone is None:
            alone = seconds
            show("Ray, 1 worker", alone, 1, f"{bare.fastest / alone.fastest - 1:+.1%} against bare")
        else:
            show("Ray, 2 workers", seconds, 2, f"{2 * alone.fastest / seconds.fastest:.2f}x")
    print()
    show_shares(folder, "dataset")


def show(name: str, seconds: Seconds, blocks: int, change: str) -> None:
    """A row, of so many blocks at a time."""
    rate = blocks * BLOCK_SIZE / seconds.fastest
    print(
        f"| {name} | {seconds.fastest:.3f} | {seconds.median:.3f} | {rate:.1f} | {change} |",
        flush=True,
    )


def _digits(blocks: int) -> ImageSetConfig:
    return ImageSetConfig(source="digits:train", max_images=blocks * BLOCK_SIZE)


def bare_block_seconds(folder: Path, models: list[Classifier], count: int) -> Seconds:
    """Of blocks that are protected and stored in this process."""
    dataset = open_set(_digits(count), image_size=NETWORK.image_size)
    blocks = plan(
        dataset, block_size=BLOCK_SIZE, is_protected=torch.ones(len(dataset), dtype=torch.bool)
    )
    members = {number: Member(freeze(model), None) for number, model in enumerate(models)}
    ensemble = build_ensemble(
        members, size=SEP.members, vectorised_members=1, precision=torch.float32
    )
    output = parse_location(folder / f"bare-{os.getpid()}")
    run = Run(output, output.sibling(".run"), folder, {})

    def each() -> Iterator[None]:
        for number, indices in enumerate(blocks.blocks):
            clean = dataset.originals(indices)
            images = perturb_block(number, clean, blocks, dataset, ensemble, config=SEP)
            store_block(number, images, blocks, dataset, clean=clean, epsilon_levels=8, run=run)
            yield

    return summary(durations(each()))


if __name__ == "__main__":
    os.environ |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torch.set_num_threads(1)
    main()
