"""What an episode costs: time and peak memory, against first-order MAML with all graphs kept.

    python -m benchmarks.sophon_episode [--architecture timm/vit_small_patch16_224 --image-size 224]

Each row is a process of its own, and the rows are run in turn, several times over; once more for
their memory. All of them simulate the same fine-tuning: the same images, the same draws, the same
number of operations.

- *all graphs kept*: what released code does. Every adapted copy of the weights and every query
  graph stays alive until one backward pass. It is the reference of the test suite.
- *in place*: `simulate`, and with one setting of `sophon.memory` changed.

"Above the model" is the highest resident memory (on CUDA, the highest allocation) during the
episode minus what was in use before it, with the model, its images and the accumulators already
there. "Of the peak" is the rate of operations (as torch counts those of matrix products and
convolutions) over that of the fastest of several products of two square matrices in the same
precision, measured in the same process. "Off" is the distance of the gradient from that of float32
in place, over the norm of the latter.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.environment import describe_environment
from protection.batches import TensorImages
from protection.models import Classifier, ModelConfig, build_model
from protection.savings import COMPUTE_DTYPES, ROOMY, MemoryConfig, economize
from protection.sophon.adversary import Strategy
from protection.sophon.episode import Episode, draw_batches, simulate
from protection.sophon.losses import inverse_cross_entropy
from protection.tasks import Examples
from tests.references import sophon as references

KEPT: Final = "all graphs kept"
IN_PLACE: Final = "in place"
SAVINGS: Final = {
    IN_PLACE: ROOMY,
    "in place, bfloat16": MemoryConfig(compute_dtype="bfloat16"),
}
SUPPORT, QUERY = 130, 20


def main() -> None:
    """Run every case in fresh processes and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--architecture", default="timm/resnet18")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--small-image-stem", action="store_true")
    parser.add_argument("--length", type=int, default=50, help="fine-tuning steps")
    parser.add_argument("--batch-parts", type=int, default=1, help="of sophon.memory, in place")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=[KEPT, *SAVINGS], choices=[KEPT, *SAVINGS])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--gradient", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case is not None:
        print(json.dumps(measure(options.case, options)))
        return
    print(f"# What an episode costs\n\n{describe_environment()}")
    print(
        f"{options.architecture}{' (small-image stem)' if options.small_image_stem else ''}, "
        f"{options.image_size}-pixel images, {options.length} steps of SGD,"
        f" batch {SUPPORT + QUERY} ({SUPPORT} support, {QUERY} query), {torch.get_num_threads()} "
        f"threads, batch_parts {options.batch_parts}; median and range of {options.repeats} runs.\n"
    )
    print("| episode | seconds | of all graphs kept | peak above the model, MiB | of all kept |")
    print("|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shown = measure_all(options, Path(folder))
        gradients = {
            case: torch.load(path) for case in shown if (path := _gradient(folder, case)).exists()
        }
    memory = {case: runs.pop()["mebibytes"] for case, runs in shown.items()}
    seconds = {case: statistics.median(run["seconds"] for run in shown[case]) for case in shown}
    for case, runs in shown.items():
        taken = [run["seconds"] for run in runs]
        print(
            f"| {case} | {seconds[case]:.1f} ({min(taken):.1f} to {max(taken):.1f}) |"
            f" {seconds[case] / seconds.get(KEPT, torch.nan):.2f} | {memory[case]:.0f} |"
            f" {memory[case] / memory.get(KEPT, torch.nan):.2f} |"
        )
    print("\n| episode | Gflop/s | of the peak, Gflop/s | of the peak | gradient off |")
    print("|---|---|---|---|---|")
    for case, runs in shown.items():
        rate, peak = (statistics.median(run[name] for run in runs) for name in ("rate", "peak"))
        off = float("nan")
        if IN_PLACE in gradients:
            exact = gradients[IN_PLACE]
            off = float((gradients[case] - exact).norm() / exact.norm())
        print(f"| {case} | {rate:.0f} | {peak:.0f} | {rate / peak:.2f} | {off:.1e} |")


def measure_all(options: argparse.Namespace, folder: Path) -> dict[str, list[dict[str, float]]]:
    """Measure every case in turn, as often as asked, and at the end once for its memory."""
    shown: dict[str, list[dict[str, float]]] = {case: [] for case in options.cases}
    for repeat in range(options.repeats + 1):
        for case, runs in shown.items():
            command = [sys.executable, "-m", "benchmarks.sophon_episode", "--case", case]
            command += ["--gradient", str(_gradient(folder, case))]
            for name in ("architecture", "image_size", "length", "batch_parts", "device"):
                command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
            command += ["--small-image-stem"] if options.small_image_stem else []
            environment = dict(os.environ)
            if repeat == options.repeats:
                # glibc otherwise raises this threshold as it goes and keeps freed tensors in its
                # heap: resident memory would show its fragmentation and not what is alive. It costs
                # a page fault for every page of every tensor, so no time is taken with it.
                environment |= {"MALLOC_MMAP_THRESHOLD_": "131072"}
            runs.append(json.loads(subprocess.check_output(command, text=True, env=environment)))
            print(case, runs[-1], file=sys.stderr)
    return shown


def _gradient(folder: str | Path, case: str) -> Path:
    return Path(folder) / f"{case}.pt"


def measure(case: str, options: argparse.Namespace) -> dict[str, float]:
    """Peak memory, time and rate of one episode."""
    device, size = options.device, options.image_size
    torch.manual_seed(0)
    config = ModelConfig(
        architecture=options.architecture,
        image_size=size,
        small_image_stem=options.small_image_stem,
    )
    model = build_model(config, num_classes=10).to(device).train()
    if case != KEPT:  # as every job lays a model out
        model = model.to(memory_format=torch.channels_last)
    memory = SAVINGS.get(case, ROOMY)
    economize(model, memory)
    images = TensorImages(
        torch.randint(256, (600, 3, size, size), dtype=torch.uint8),
        torch.arange(600) % 10,
        num_classes=10,
    )
    strategy = Strategy(
        method="all_layers",
        optimizer="sgd",
        finetune_lr=1e-4,
        batch_size=SUPPORT,
        weight_decay=0.0,
    )
    episode = Episode(1, images, strategy, options.length, query_size=QUERY)
    gradient = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    how = MemoryConfig(**{**vars(memory), "batch_parts": options.batch_parts})

    def run(episode: Episode) -> None:
        if case == KEPT:
            keep_all_graphs(model, episode, gradient)
        else:
            simulate(
                model,
                episode,
                suppression_loss=inverse_cross_entropy,
                gradient=gradient,
                memory=how,
            )

    # Thread pools and convolution workspaces belong to the process, not to an episode.
    with FlopCounterMode(display=False) as counter:
        run(episode._replace(length=1))
    peak = measured_peak(COMPUTE_DTYPES[memory.compute_dtype], device)
    for total in gradient:
        total.zero_()
    before = start_peak(device)
    started = time.monotonic()
    run(episode)
    _wait(device)
    seconds = time.monotonic() - started
    mebibytes = (read_peak(device) - before) / 2**20
    torch.save(torch.cat([total.flatten() for total in gradient]).cpu(), options.gradient)
    operations = counter.get_total_flops() * options.length
    return {
        "mebibytes": mebibytes,
        "seconds": seconds,
        "rate": operations / seconds / 1e9,
        "peak": peak,
    }


def keep_all_graphs(model: Classifier, episode: Episode, gradient: list[Tensor]) -> None:
    """First-order MAML as released code writes it: one backward through all query losses."""
    batches = draw_batches(episode, device=model.device)
    loss = references.episode_loss(
        model,
        # As released code has them: in the layout they are read in.
        ((Examples((s.images,), s.labels), Examples((q.images,), q.labels)) for s, q in batches),
        finetune_lr=episode.strategy.finetune_lr,
        suppression_loss=inverse_cross_entropy,
    )
    grads = torch.autograd.grad(loss, list(model.parameters()))
    for total, grad in zip(gradient, grads, strict=True):
        total += grad


def measured_peak(dtype: torch.dtype, device: str) -> float:
    """Gflop/s of the fastest product of two square matrices."""
    rates = []
    for size in (1024, 2048, 4096) if device == "cpu" else (4096, 8192):
        one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        for _ in range(4):
            started = time.monotonic()
            one @ other
            _wait(device)
            rates.append(2 * size**3 / (time.monotonic() - started) / 1e9)
    return max(rates)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def start_peak(device: str) -> int:
    """Begin to watch the peak; return the bytes in use now."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark
    return _status("VmRSS")


def read_peak(device: str) -> int:
    """Return the highest number of bytes in use since `start_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{field} is not in /proc/self/status")


if __name__ == "__main__":
    main()
