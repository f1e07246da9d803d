"""Blocks of a dataset on their way to protection: planned, protected, stored, checked, noted.

A block is the unit that one group of workers computes and that a killed job does not lose: its file
is staged at the output, read back, checked against the budget, and then noted in the run's own
place. Its bytes depend on the recipe and the block's number alone.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from protection.audit.imperceptibility import measure_changes
from protection.names import nearest
from protection.seeds import generator
from protection.sep.algorithm import perturb
from protection.sep.config import SepConfig
from protection.sep.gradients import Ensemble
from protection.sep.trajectory import target_labels
from ray_jobs.runs import Run
from storage.blobs import open_blobs
from storage.commit import stage
from storage.dataset_writer import parquet_block
from storage.datasets import ImageDataset
from storage.errors import DatasetError
from storage.manifest import Part
from storage.parquet_images import ParquetImages

_NOTES: Final = "blocks/"


@dataclass(frozen=True, kw_only=True)
class Note:
    """What is kept of a finished block beside its file."""

    part: Part
    num_images: int
    num_protected: int
    psnr: list[float | None]
    """In dB, of each protected image; None where nothing moved."""
    ssim: list[float]
    """Of each protected image."""
    max_change_levels: int


class Plan(NamedTuple):
    """Which images are in which block, and which of them are to be protected."""

    blocks: list[Tensor]
    """``(B,)`` int64 dataset indices of each block, in order."""
    is_protected: Tensor
    """``(N,)`` bool."""


def plan(dataset: ImageDataset, *, block_size: int, is_protected: Tensor) -> Plan:
    """Cut ``dataset`` into blocks of ``block_size`` consecutive images."""
    return Plan(list(torch.split(torch.arange(len(dataset)), block_size)), is_protected)


def choose_images(
    dataset: ImageDataset, *, classes: list[int | str] | None, share: float, seed: int
) -> Tensor:
    """``(N,)`` bool: whether each image is protected.

    Args:
        dataset: all the images.
        classes: those to protect, by number or name; None: all.
        share: of their images, in (0, 1], drawn by ``seed``; at least one image.
        seed: of the draw; a smaller share is part of a larger one.

    Raises:
        ValueError: a class is not the dataset's, or has no image.
    """
    candidates = torch.arange(len(dataset))
    if classes is not None:
        numbers = torch.tensor([_class_number(wanted, dataset) for wanted in classes])
        candidates = candidates[torch.isin(dataset.labels, numbers)]
    count = max(1, round(share * len(candidates)))
    order = torch.randperm(len(candidates), generator=generator(seed, "protected share"))
    chosen = torch.zeros(len(dataset), dtype=torch.bool)
    chosen[candidates[order[:count]]] = True
    return chosen


def _class_number(wanted: int | str, dataset: ImageDataset) -> int:
    names, present = dataset.class_names, torch.unique(dataset.labels).tolist()
    number = names.index(str(wanted)) if str(wanted) in names else wanted
    if number not in present:
        listed = ", ".join(names[label] for label in present[:10])
        raise ValueError(
            f"only_classes has {wanted!r}, of which the dataset has no image; expected some of "
            f"{listed}{' and more' if len(present) > 10 else ''}"
            f"{nearest(wanted, (names[label] for label in present))}"
        )
    return int(number)


def perturb_block(
    number: int,
    images: list[Tensor],
    blocks: Plan,
    dataset: ImageDataset,
    ensemble: Ensemble,
    *,
    config: SepConfig,
) -> list[Tensor]:
    """``images`` of block ``number`` with those to be protected perturbed.

    All workers that share ``ensemble`` must call it, with the same images.
    """
    indices, protected = blocks.blocks[number], list(images)
    chosen = torch.nonzero(blocks.is_protected[indices]).flatten()
    for batch, positions in enumerate(torch.split(chosen, config.batch_size)):
        targets = target_labels(
            dataset.labels[indices[positions]],
            num_classes=dataset.num_classes,
            target_classes=config.target_classes,
        )
        perturbed = perturb(
            [images[position] for position in positions.tolist()],
            targets,
            ensemble,
            image_size=dataset.image_size,
            config=config,
            key=("block", number, "batch", batch),
        )
        for position, image in zip(positions.tolist(), perturbed, strict=True):
            protected[position] = image
    return protected


def store_block(
    number: int,
    images: list[Tensor],
    blocks: Plan,
    dataset: ImageDataset,
    *,
    clean: list[Tensor],
    epsilon_levels: int,
    run: Run,
) -> Note:
    """Stage block ``number`` at the run's output, check what was stored, and note it.

    Raises:
        DatasetError: what is read back is out of the budget.
    """
    indices = blocks.blocks[number]
    data = parquet_block(
        images,
        dataset.labels[indices],
        dataset.index[indices],
        class_names=dataset.class_names,
        paths=dataset.paths(indices),
        columns=dataset.columns(indices),
    )
    part = stage(run.output, f"data-{number:05d}.parquet", data)
    changes = measure_changes(read_stored(part, range(len(clean)), run=run), clean)
    worst = int(changes.max_levels.max())
    if worst > epsilon_levels:  # a defect of ours, or of what stores
        row = int(changes.max_levels.argmax())
        raise DatasetError(
            f"{run.output / part.path} row {row} is {worst} levels from its clean image when read "
            f"back; expected at most {epsilon_levels} (is the storage sound?)"
        )
    protected = torch.nonzero(blocks.is_protected[indices]).flatten()
    note = Note(
        part=part,
        num_images=len(indices),
        num_protected=len(protected),
        psnr=[_finite_or_none(value) for value in changes.psnr[protected].tolist()],
        ssim=changes.ssim[protected].tolist(),
        max_change_levels=worst,
    )
    document = json.dumps(dataclasses.asdict(note)).encode()
    open_blobs(run.state).put(f"{_NOTES}{number:05d}.json", document)
    return note


def _finite_or_none(value: float) -> float | None:
    return value if abs(value) < float("inf") else None


def finished_blocks(run: Run) -> set[int]:
    """Return the numbers of the blocks that are noted."""
    return {
        int(name.removeprefix(_NOTES).removesuffix(".json"))
        for name in open_blobs(run.state).list(_NOTES)
    }


def read_stored(part: Part, rows: Iterable[int], *, run: Run) -> list[Tensor]:
    """Images ``rows`` of a staged file as they are stored, ``(C, H, W)`` uint8 each."""
    stored = ParquetImages(run.output, open_blobs(run.output), [part.path], cache_bytes=0)
    return [stored.original(row) for row in rows]


def read_notes(run: Run) -> Iterator[Note]:
    """Yield the notes of all finished blocks, in the order of blocks."""
    blobs = open_blobs(run.state)
    for name in blobs.list(_NOTES):
        values: dict[str, Any] = json.loads(blobs.get(name))
        yield Note(**{**values, "part": Part(**values["part"])})
