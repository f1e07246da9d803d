"""What `scaling_model.py` says of clusters that are not here.

    python -m benchmarks.scaling_prediction [--step-ms 20]

Links and step times are assumptions, which are printed with the answers.
"""

import argparse

from benchmarks.scaling_model import Costs, Link, Shape, images_per_second

GPUS = (8, 64, 512)
# Latency of a hop, and bytes a second that an all-reduce gets out of it.
LINKS = {
    "NVLink in one machine": Link(1e-5, 2e11),
    "100 Gbit/s": Link(3e-5, 1.0e10),
    "25 Gbit/s": Link(5e-5, 2.5e9),
    "10 Gbit/s": Link(5e-5, 1.0e9),
}
NETWORKS = {"ResNet-18, 11 M parameters": 11_000_000, "ViT-B, 86 M parameters": 86_000_000}
NUM_IMAGES = 50_000
# PNG of 32 pixels: read once, written once, and what was written is read back.
BYTES_PER_IMAGE = 3 * 3_000


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=20.0)
    print_predictions(parser.parse_args().step_ms / 1000)


def print_predictions(step_seconds: float) -> None:
    """For GPUs that take so long for a step of SOPHON, and for a gradient of 128 images of SEP."""
    print("## Predicted, not measured\n")
    print(
        "SOPHON as released (episodes of 50 steps, one reinforcement step, which is not shared), "
        f"one episode a GPU and round. Assumed: a step takes {1000 * step_seconds:.0f} ms, what "
        "else an episode does 5 steps, the rest of a round 10. Share of a round that is not spent "
        "on summing:\n"
    )
    columns = " | ".join(f"{gpus} GPUs" for gpus in GPUS)
    print(f"| network | link | {columns} |\n|---|---|---|---|---|")
    for network, parameters in NETWORKS.items():
        for name, link in LINKS.items():
            gpus_of_link = GPUS[:1] if "one machine" in name else GPUS
            shares = [busy_share(step_seconds, parameters, link, gpus) for gpus in gpus_of_link]
            cells = [f"{share:.1%}" for share in shares] + ["-"] * (len(GPUS) - len(shares))
            print(f"| {network} | {name} | {' | '.join(cells)} |")
    print(
        f"\nSEP as released (30 steps, 30 members) on {NUM_IMAGES} images of 32 pixels. Assumed: a "
        f"gradient of 128 images takes {1000 * step_seconds:.0f} ms, an image is 3 kB:\n"
    )
    print(f"| blocks of | {columns} |\n|---|---|---|---|")
    image_seconds = 30 * 30 * step_seconds / 128
    for block_size in (1000, 100):
        cells = []
        for gpus in GPUS:
            blocks = -(-NUM_IMAGES // block_size)
            rate = images_per_second(image_seconds, blocks=blocks, workers=gpus)
            cells.append(f"{rate:.0f} images/s, {BYTES_PER_IMAGE * rate / 1e6:.2f} MB/s of S3")
        print(f"| {block_size} | {' | '.join(cells)} |")


def busy_share(step_seconds: float, parameters: int, link: Link, gpus: int) -> float:
    """Share of a round that is not spent on summing."""
    costs = Costs(5 * step_seconds, step_seconds, step_seconds, 10 * step_seconds)
    shape = Shape(gpus, 50, 1, 1, parameters)
    busy = costs.round_seconds(shape, Link(0.0, float("inf")), workers=gpus)
    return busy / costs.round_seconds(shape, link, workers=gpus)


if __name__ == "__main__":
    main()
