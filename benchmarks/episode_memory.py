"""Peak memory of an episode: constant in its length, where keeping the query graphs is not.

    python -m benchmarks.episode_memory

Each row is a process of its own. "Above the model" is the highest resident memory (on CUDA, the
highest allocation) during the episode minus what was in use before it, with the model, its images
and the accumulators already there. "all graphs kept" is the first-order MAML of the test suite's
reference: every adapted copy of the weights and every query graph stays alive until one backward.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.environment import describe_environment
from protection.batches import TensorImages
from protection.models import Classifier, ModelConfig, build_model
from protection.sophon.adversary import Strategy
from protection.sophon.episode import Episode, draw_batches, simulate
from protection.sophon.losses import inverse_cross_entropy
from tests.references import sophon as references

CASES = (("in place", 5), ("in place", 50), ("all graphs kept", 5), ("all graphs kept", 50))


def main() -> None:
    """Run every case in a fresh process and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--case", nargs=2, metavar=("NAME", "LENGTH"))
    options = parser.parse_args()
    if options.case is not None:
        name, length = options.case
        print(json.dumps(measure(name, int(length), options.image_size, options.device)))
        return
    print(f"# Peak memory of an episode\n\n{describe_environment()}")
    print(
        f"ResNet-18 (11.2 M parameters, float32), {options.image_size}-pixel images, batch 150 "
        "(130 support, 20 query), SGD, one process each.\n"
    )
    print("| episode | steps | peak above the model, MiB | seconds |\n|---|---|---|---|")
    for name, length in CASES:
        command = [sys.executable, "-m", "benchmarks.episode_memory", "--device", options.device]
        command += ["--image-size", str(options.image_size), "--case", name, str(length)]
        # glibc otherwise raises this threshold as it goes and keeps freed tensors in its heap: the
        # resident memory would show its fragmentation and not what is alive.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        shown = json.loads(subprocess.check_output(command, text=True, env=environment))
        print(f"| {name} | {length} | {shown['mebibytes']:.0f} | {shown['seconds']:.1f} |")


def measure(name: str, length: int, image_size: int, device: str) -> dict[str, float]:
    """Peak memory and time of one episode."""
    torch.manual_seed(0)
    config = ModelConfig(architecture="timm/resnet18", image_size=image_size)
    model = build_model(config, num_classes=10).to(device).train()
    images = TensorImages(
        torch.randint(256, (600, 3, image_size, image_size), dtype=torch.uint8),
        torch.arange(600) % 10,
        num_classes=10,
    )
    strategy = Strategy(
        method="all_layers", optimizer="sgd", finetune_lr=1e-4, batch_size=130, weight_decay=0.0
    )
    episode = Episode(1, images, strategy, length, query_size=20)
    gradient = [torch.zeros_like(p, dtype=torch.float64) for p in model.parameters()]
    # Thread pools and convolution workspaces belong to the process, not to an episode.
    simulate(
        model, episode._replace(length=1), suppression_loss=inverse_cross_entropy, gradient=gradient
    )
    before = start_peak(device)
    started = time.monotonic()
    if name == "in place":
        simulate(model, episode, suppression_loss=inverse_cross_entropy, gradient=gradient)
    else:
        keep_all_graphs(model, episode, gradient)
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - started
    return {"mebibytes": (read_peak(device) - before) / 2**20, "seconds": seconds}


def keep_all_graphs(model: Classifier, episode: Episode, gradient: list[torch.Tensor]) -> None:
    """First-order MAML as released code writes it: one backward through all query losses."""
    batches = draw_batches(episode, device=model.device)
    loss = references.episode_loss(
        model,
        ((model.examples(support), model.examples(query)) for support, query in batches),
        finetune_lr=episode.strategy.finetune_lr,
        suppression_loss=inverse_cross_entropy,
    )
    grads = torch.autograd.grad(loss, list(model.parameters()))
    for total, grad in zip(gradient, grads, strict=True):
        total += grad


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
