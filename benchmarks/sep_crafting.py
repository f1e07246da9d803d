"""How fast SEP perturbs images, against a bare gradient loop and against the released procedure.

    python -m benchmarks.sep_crafting [--network resnet18] [--device cuda]

All rows spend the same gradients on the same batch in the middle of 50,000 images; a row's number
is images a second divided by steps and members, so that rows of other lengths compare:

- *bare loop*: forward pass and input gradient, member after member, and nothing else; once more in
  bfloat16.
- *perturb*: the algorithm. *perturb and store*: with PNG and Parquet, the way to disk and back, and
  the budget checked.
- *vectorised*, *bfloat16*: the algorithm with one setting changed.
- *released procedure*, as described: for every step and member the checkpoint is loaded from disk
  and a data loader is walked from its start to the batch.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

from benchmarks.environment import describe_environment
from protection.models import Classifier, ModelConfig
from protection.sep.algorithm import perturb
from protection.sep.config import SepConfig
from protection.sep.gradients import build_ensemble, input_gradient
from protection.sep.trajectory import Member, freeze, target_labels
from ray_jobs.model_files import new_model
from ray_jobs.protected_blocks import plan, store_block
from ray_jobs.runs import Run
from storage.datasets import open_dataset
from storage.location import parse_location

NETWORKS = {
    "resnet18": ModelConfig(architecture="timm/resnet18", image_size=32, small_image_stem=True),
    "small": ModelConfig(
        architecture="timm/resnet18",
        image_size=32,
        options={
            "layers": [1, 1, 1, 1],
            "channels": [16, 32, 64, 128],
            "stem_type": "deep",
            "stem_width": 8,
        },
    ),
}
NUM_IMAGES = 50_000


def main() -> None:
    """Time every row in turn, several times over, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", choices=NETWORKS, default="small")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="as many as a worker's CPUs")
    parser.add_argument("--without", nargs="+", default=[], help="rows that are left out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        rows = prepare(options, Path(folder))
        rows = {name: row for name, row in rows.items() if name not in options.without}
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for repeat in range(options.repeats + 1):
            for name, row in rows.items():  # interleaved: a busy moment hits every row alike
                started = time.perf_counter()
                row()
                if options.device == "cuda":
                    torch.cuda.synchronize()
                if repeat:  # the first is the warm-up
                    seconds[name].append(time.perf_counter() - started)
    print(f"# SEP crafting\n\n{describe_environment()}")
    print(
        f"{options.network}, 32-pixel images, batch {options.batch_size}, {options.members} "
        f"members, {options.steps} steps, {torch.get_num_threads()} threads; median and range of "
        f"{options.repeats} runs.\n"
    )
    gradients = options.batch_size * options.members * options.steps
    bare = statistics.median(seconds["bare loop"])
    half = statistics.median(seconds["bare loop, bfloat16"])
    print("| row | image gradients a second | of the bare loop | of the one in its precision |")
    print("|---|---|---|---|")
    for name, taken in seconds.items():
        rate = [gradients / value for value in (statistics.median(taken), max(taken), min(taken))]
        share = bare / statistics.median(taken)
        own = (half if "bfloat16" in name else bare) / statistics.median(taken)
        print(
            f"| {name} | {rate[0]:.0f} ({rate[1]:.0f} to {rate[2]:.0f}) | {share:.3f} | {own:.3f} |"
        )


def prepare(options: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what to time, by the name of its row."""
    config = NETWORKS[options.network]
    images = torch.randint(256, (options.batch_size, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(options.batch_size) % 10
    targets = target_labels(labels, num_classes=10).to(options.device)
    models = [
        freeze(new_model(config, num_classes=10, seed=seed)).to(options.device)
        for seed in range(options.members)
    ]
    members = {number: Member(model, None) for number, model in enumerate(models)}
    inputs = (images / 255).to(options.device).contiguous(memory_format=torch.channels_last)

    def bare(precision: torch.dtype = torch.float32) -> None:
        for _ in range(options.steps):
            for member in members.values():
                input_gradient(member, inputs, targets, precision=precision)

    def crafting(**changes: Any) -> Callable[[], list[torch.Tensor]]:
        sep = SepConfig(members=options.members, steps=options.steps, **changes)
        ensemble = build_ensemble(
            members,
            size=sep.members,
            vectorised_members=sep.vectorised_members,
            precision=getattr(torch, sep.precision),
        )
        return lambda: perturb(list(images), targets, ensemble, image_size=32, config=sep)

    plain = crafting()
    return {
        "bare loop": bare,
        "bare loop, bfloat16": lambda: bare(torch.bfloat16),
        "perturb": plain,
        "perturb and store": storing(plain, folder, options.batch_size),
        "perturb, vectorised": crafting(vectorised_members=options.members),
        "perturb, bfloat16": crafting(precision="bfloat16"),
        "released procedure": released(models, folder, options),
    }


def storing(
    craft: Callable[[], list[torch.Tensor]], folder: Path, batch_size: int
) -> Callable[[], object]:
    """``craft`` and everything that protect-data does with its result."""
    dataset = open_dataset("photographs:train", image_size=32).subset(torch.arange(batch_size))
    blocks = plan(
        dataset, block_size=batch_size, is_protected=torch.ones(batch_size, dtype=torch.bool)
    )
    output = parse_location(folder / "protected")
    run = Run(output, output.sibling(".run"), folder, {})

    def row() -> None:
        images = craft()
        # Compared with themselves: what is timed does not depend on the difference.
        store_block(0, images, blocks, dataset, clean=images, epsilon_levels=255, run=run)

    return row


class Walked(Dataset[tuple[torch.Tensor, int]]):
    """Decoded images that become tensors when a loader passes them, as torchvision's CIFAR-10."""

    def __init__(self) -> None:
        """Make images of noise."""
        pixels = torch.randint(256, (NUM_IMAGES, 32, 32, 3), dtype=torch.uint8)
        self.pixels = pixels.numpy()

    def __len__(self) -> int:
        """Number of images."""
        return NUM_IMAGES

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Image and label."""
        return to_tensor(Image.fromarray(self.pixels[index])), index % 10


def released(
    models: list[Classifier], folder: Path, options: argparse.Namespace
) -> Callable[[], object]:
    """One member of one step at the middle batch, repeated for all members and steps."""
    paths = [folder / f"{number}.safetensors" for number in range(len(models))]
    for model, path in zip(models, paths, strict=True):
        weights = {k: v.contiguous() for k, v in model.network.state_dict().items()}
        save_file(weights, str(path))
    loader = DataLoader(Walked(), batch_size=options.batch_size)
    middle = len(loader) // 2
    network = freeze(new_model(NETWORKS[options.network], num_classes=10, seed=0))
    network.to(options.device)

    def row() -> None:
        for _ in range(options.steps):
            for path in paths:
                network.network.load_state_dict(load_file(str(path)))
                images, labels = next(islice(loader, middle, None))
                targets = (labels + 5) % 10
                input_gradient(
                    Member(network, None), images.to(options.device), targets.to(options.device)
                )

    return row


if __name__ == "__main__":
    main()
