"""What the memory layout of images is worth to a training step of the recipes' networks.

    python -m benchmarks.image_layout

Forward and backward pass of one batch in float32, with images contiguous and channels-last, in
turn; the same network, one thread (a worker's share).
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from benchmarks.environment import describe_environment
from protection.models import build_model
from ray_jobs.pretrain import Pretrain
from ray_jobs.recipes import read_recipe

RECIPES = ("digits", "photographs", "cifar10-mnist")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def main() -> None:
    """Time every network in both layouts, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"# The layout of images\n\n{describe_environment()}")
    print(f"Batch {options.batch_size}; median and range of {options.repeats} interleaved steps.\n")
    print("| network of recipes/ | contiguous, ms | channels-last, ms | less time |")
    print("|---|---|---|---|", flush=True)
    for name in RECIPES:
        taken = step_seconds(name, options.batch_size, options.repeats)
        before, after = (statistics.median(seconds) for seconds in taken.values())
        shown = [
            f"{1e3 * statistics.median(s):.1f} ({1e3 * min(s):.1f} to {1e3 * max(s):.1f})"
            for s in taken.values()
        ]
        print(f"| {name} | {' | '.join(shown)} | {1 - after / before:.0%} |", flush=True)


def step_seconds(name: str, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, by layout."""
    config = read_recipe(Path(f"recipes/{name}/pretrain.yaml"), Pretrain).model
    assert config is not None
    torch.manual_seed(0)
    model = build_model(config, num_classes=10).train()
    labels = torch.arange(batch_size) % 10
    images = torch.rand(batch_size, 3, config.image_size, config.image_size)
    taken: dict[str, list[float]] = {layout: [] for layout in LAYOUTS}
    for repeat in range(repeats + 1):
        for layout, memory_format in LAYOUTS.items():
            laid_out = images.contiguous(memory_format=memory_format)
            began = time.perf_counter()
            loss = F.cross_entropy(model(laid_out), labels)
            torch.autograd.grad(loss, list(model.parameters()))
            if repeat:  # the first is the warm-up
                taken[layout].append(time.perf_counter() - began)
    return taken


if __name__ == "__main__":
    main()
