"""A protection's memory as it was estimated before, and as it was; and what fits which GPU.

    python -m benchmarks.memory_estimate            # measured, on the CPU
    python -m benchmarks.memory_estimate --table    # computed: the largest model per GPU

Measured: each row is a process of its own that runs two rounds of SOPHON on random images. The
process's highest resident memory, less what it had before the model was built, is compared with the
estimate; the highest sum of what torch's own allocator handed out is given beside it.

Computed: the estimate alone, from the structure of the network, at the released batch sizes.
"""

import argparse
import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import torch

from benchmarks.environment import describe_environment
from benchmarks.sophon_episode import read_peak, start_peak
from protection.batches import TensorImages
from protection.models import Classifier, ModelConfig, build_model
from protection.savings import MemoryConfig, economize
from protection.sophon.adversary import StrategyFamily
from protection.sophon.algorithm import protect, start
from protection.sophon.config import SophonConfig
from protection.sophon.domains import Domains
from protection.sophon.memory import GIB, estimate_memory
from protection.sophon.passes import Passes

IMAGE_SIZE = 224
MEASURED = (
    ("timm/resnet50", 8, {}),
    ("timm/vit_base_patch16_224", 4, {}),
    ("timm/caformer_s18", 8, {}),
)
# By size; the released settings otherwise (support 130, query 20, reinforcement 150 images).
CANDIDATES = (
    "timm/vit_base_patch16_224",
    "timm/caformer_b36",
    "timm/vit_large_patch16_224",
    "timm/vit_huge_patch14_224",
    "timm/vit_giant_patch14_224",
)
GPUS_GB = (16, 24, 40, 80)
USABLE = 0.95


def main() -> None:
    """Print one of the tables, or measure one row for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--row", type=int)
    options = parser.parse_args()
    if options.row is not None:
        print(json.dumps(measure(*MEASURED[options.row])))
    elif options.table:
        print_table()
    else:
        print_measured()


def print_measured() -> None:
    """Run every row in a fresh process."""
    print(f"# A protection's memory, estimated and measured\n\n{describe_environment()}")
    print(
        "| model | images | saving | parameters, M | estimated, MiB | resident, MiB | difference | "
        "allocated, MiB |\n|---|---|---|---|---|---|---|---|"
    )
    for row, (name, batch_size, memory) in enumerate(MEASURED):
        command = [sys.executable, "-m", "benchmarks.memory_estimate", "--row", str(row)]
        # See benchmarks.sophon_episode: resident memory then shows what is alive.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        shown = json.loads(subprocess.check_output(command, text=True, env=environment))
        estimated, resident = shown["estimated"] / 2**20, shown["resident"] / 2**20
        print(
            f"| {name} | {batch_size} | {_described(memory)} | {shown['parameters'] / 1e6:.1f} "
            f"| {estimated:.0f} | {resident:.0f} | {estimated / resident - 1:+.1%} "
            f"| {shown['allocated'] / 2**20:.0f} |",
            flush=True,
        )


def small(batch_size: int, memory: dict[str, object]) -> SophonConfig:
    """Two rounds on few images: on two cores one of ViT-B takes seconds."""
    return SophonConfig(
        rounds=2,
        episode_length=1,
        query_size=batch_size,
        adversary=[StrategyFamily(optimizers=["adam"], batch_sizes=[batch_size])],
        reinforcement_batch_size=batch_size,
        validation_images=batch_size,
        max_original_drop=0.99,
        memory=MemoryConfig(**memory),
    )


def measure(name: str, batch_size: int, memory: dict[str, object]) -> dict[str, float]:
    """Estimate and peaks of two rounds."""
    config = small(batch_size, memory)
    with torch.device("meta"):
        passes = Passes(build(name), image_size=IMAGE_SIZE)
    estimated = estimate_memory(passes, config, group_size=1, on_gpu=False).peak_bytes
    warm_up()
    before = start_peak("cpu")
    model = build(name)
    economize(model, config.memory)
    domains = Domains(images(32), images(16), [images(32)])
    with torch.profiler.profile(profile_memory=True) as profile:
        list(protect(start(model, config), domains, config=config))
        resident = read_peak("cpu") - before
    parameters = sum(parameter.numel() for parameter in model.parameters())
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return {
        "estimated": estimated,
        "resident": resident,
        "allocated": held + allocated_peak(profile),
        "parameters": parameters,
    }


def allocated_peak(profile: torch.profiler.profile) -> int:
    """Highest sum of what torch's allocator handed out and had not back, by its own events."""
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most


def warm_up() -> None:
    """Set up what belongs to the process: thread pools, the kernels' libraries, the profiler."""
    model = build_model(ModelConfig(architecture="timm/test_vit", image_size=160), num_classes=10)
    with torch.profiler.profile(profile_memory=True):
        model(torch.rand(2, 3, 160, 160)).sum().backward()
    del model
    gc.collect()


def build(name: str) -> Classifier:
    """A network for ten classes, newly drawn."""
    return build_model(ModelConfig(architecture=name, image_size=IMAGE_SIZE), num_classes=10)


def images(number: int) -> TensorImages:
    """Noise."""
    pixels = torch.randint(256, (number, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    return TensorImages(pixels, torch.arange(number) % 10, num_classes=10)


def print_table() -> None:
    """For each saving the largest of `CANDIDATES` on each GPU, and what every model needs."""
    print(f"# The largest model that can be protected\n\n{describe_environment()}")
    peaks: dict[str, dict[str, float]] = {}
    sizes: dict[str, float] = {}
    for name in CANDIDATES:
        with torch.device("meta"):
            model = build(name)
        passes = Passes(model, image_size=IMAGE_SIZE)
        sizes[name] = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        for label, config, group_size in cases():
            found = estimate_memory(passes, config, group_size=group_size, on_gpu=True)
            peaks.setdefault(label, {})[name] = found.peak_bytes
        print(f"{name} done", file=sys.stderr, flush=True)
    print("| saving | " + " | ".join(f"{gpu} GB" for gpu in GPUS_GB) + " |")
    print("|---" * (1 + len(GPUS_GB)) + "|")
    for label, of_models in peaks.items():
        cells = (_largest(of_models, sizes, gpu) for gpu in GPUS_GB)
        print(f"| {label} | " + " | ".join(cells) + " |")
    short = [name.removeprefix("timm/").removesuffix("_224") for name in CANDIDATES]
    print("\nGiB for each worker:\n\n| saving | " + " | ".join(short) + " |")
    print("|---" * (1 + len(short)) + "|")
    for label, of_models in peaks.items():
        cells = (f"{of_models[name] / GIB:.1f}" for name in CANDIDATES)
        print(f"| {label} | " + " | ".join(cells) + " |")


def cases() -> Iterator[tuple[str, SophonConfig, int]]:
    """Each saving alone, all of them, and all in a group of workers."""
    plain = SophonConfig()

    def saving(**memory: object) -> SophonConfig:
        shards = int(str(memory.get("batch_parts", 1)))
        return dataclasses.replace(
            plain, memory=MemoryConfig(**memory), reinforcement_shards=shards
        )

    everything = {
        "batch_parts": 8,
        "checkpoint_activations": True,
        "compute_dtype": "bfloat16",
        "host_copies": True,
        "float32_sums": True,
    }
    yield "none", plain, 1
    for name, value in everything.items():
        yield _described({name: value}), saving(**{name: value}), 1
    yield "all of these", saving(**everything), 1
    yield "all of these, a group of 4", saving(**everything), 4
    yield "all of these, a group of 8", saving(**everything), 8


def _largest(of_models: dict[str, float], sizes: dict[str, float], gpu: int) -> str:
    fitting = [name for name, peak in of_models.items() if peak <= USABLE * gpu * 1e9]
    if not fitting:
        return "none"
    name = max(fitting, key=lambda name: sizes[name])
    return f"{name.removeprefix('timm/').removesuffix('_224')} ({sizes[name]:.0f} M)"


def _described(memory: dict[str, object]) -> str:
    return ", ".join(f"{name}: {str(value).lower()}" for name, value in memory.items()) or "none"


if __name__ == "__main__":
    main()
