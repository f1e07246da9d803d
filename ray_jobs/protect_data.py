"""`ringfence protect-data`: SEP on a dataset, block by block."""

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from protection.sep.config import SepConfig
from protection.sep.gradients import Ensemble
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.ensembles import check_classes, check_ensemble, load_ensemble
from ray_jobs.image_sets import ImageSetConfig, absolute_set, open_set
from ray_jobs.launch import launch
from ray_jobs.lineage import parent
from ray_jobs.preview import picture_strip
from ray_jobs.protected_blocks import (
    Note,
    Plan,
    choose_images,
    finished_blocks,
    perturb_block,
    plan,
    read_notes,
    read_stored,
    store_block,
)
from ray_jobs.protected_datasets import commit_protected
from ray_jobs.reporting import Row, duration
from ray_jobs.runs import Run, provenance
from ray_jobs.train_loop import failing_clearly, report_rounds
from ray_jobs.trajectories import Trajectory, open_trajectory
from ray_jobs.workers import WorkerGroups, current_device, current_groups, current_workers
from storage.datasets import ImageDataset
from storage.location import parse_location

# Columns of the picture: more would not fit a page.
_PREVIEWED: Final = 10


@dataclass(frozen=True, kw_only=True)
class ProtectData:
    """Perturb a dataset within an invisible budget so that a model trained on it learns little."""

    dataset: ImageSetConfig
    """The images to protect; their size and mode are kept."""
    trajectory: str
    """Location of the protecting model, which pretrain made with trajectory_checkpoints."""
    output: str
    """Location to commit the protected dataset to; must not exist yet."""
    sep: SepConfig = field(default_factory=SepConfig)
    share: float = 1.0
    """Share of the images to protect, drawn by sep.seed; the others are stored unchanged."""
    only_classes: list[int | str] | None = None
    """Classes whose images are protected, by number or name; null: all."""
    reference: ImageSetConfig | None = None
    """Images whose class-mean features are aligned to; null: the dataset itself. For new images of
    few classes: those that the trajectory was trained on."""
    block_size: int = 1000
    """Images per stored file, the unit of work that a killed job keeps."""
    cluster: GroupedClusterConfig = field(default_factory=GroupedClusterConfig)

    def __post_init__(self) -> None:
        """Reject values that no dataset can be protected with."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; expected above 0, at most 1")
        if self.block_size < 1:
            raise ValueError(f"block_size is {self.block_size}; expected at least 1")
        if self.reference is not None and not self.sep.feature_alignment:
            raise ValueError(
                "reference is given, but only feature alignment uses it; expected null, or "
                "sep.feature_alignment: true"
            )
        if self.cluster.workers_per_group > self.sep.members:
            raise ValueError(
                f"cluster.workers_per_group is {self.cluster.workers_per_group}, but there are "
                f"{self.sep.members} members to split; expected at most {self.sep.members}"
            )

    def parents(self) -> dict[str, object]:
        """The trajectory, as it is now."""
        return parent("trajectory", self.trajectory)


class _Opened(NamedTuple):
    trajectory: Trajectory
    dataset: ImageDataset
    reference: ImageDataset
    blocks: Plan


class Progress(NamedTuple):
    """Where a run is after each of the workers' groups did one block."""

    blocks_done: int
    num_blocks: int
    images_done: int
    psnr: float
    """In dB, median of the block that rank 0 stored last; nan where nothing in it moved."""


def absolute(job: ProtectData) -> ProtectData:
    """``job`` with absolute local paths: workers have other working directories."""
    return dataclasses.replace(
        job,
        dataset=absolute_set(job.dataset),
        trajectory=str(parse_location(job.trajectory)),
        reference=job.reference and absolute_set(job.reference),
    )


def run(job: ProtectData) -> str:
    """Protect, commit, and return the location of the protected dataset.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: the run failed.
    """
    job = absolute(job)
    _open(job)  # what does not fit should fail here, before a cluster starts
    return launch(
        job,
        verb="protect-data",
        loop=train_loop_per_worker,
        format_row=format_row,
        step_field="blocks_done",
    )


def format_row(row: Row) -> str:
    """One line of progress."""
    psnr = "-" if row["psnr"] is None else f"{row['psnr']:.1f} dB"
    return (
        f"sep {row['blocks_done']}/{row['num_blocks']} blocks  {row['images_done']} images  psnr "
        f"{psnr}  {row['seconds']:.1f} s  eta {duration(row['eta_seconds'])}"
    )


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Protect the blocks that are left; every Ray Train worker runs this function."""
    job = config["job"]
    return failing_clearly(lambda: _protect(job, config["run"]), cluster=job.cluster)


def _protect(job: ProtectData, this_run: Run) -> dict[str, Any]:
    workers, groups = current_workers(), current_groups(job.cluster.workers_per_group)
    device = current_device()
    if device.type == "cuda":
        # The fastest algorithm may differ between workers, and with it a sign.
        torch.backends.cudnn.deterministic = True
    opened = _open(job)
    # Rank 0 decides what is left: another group may finish a block while this worker looks.
    left = torch.zeros(len(opened.blocks.blocks), dtype=torch.float64, device=device)
    if workers.rank == 0:
        left += 1
        left[sorted(finished_blocks(this_run))] = 0
    workers.sum_in_place([left])
    numbers = torch.nonzero(left).flatten().tolist()
    if numbers:
        ensemble = load_ensemble(
            opened.trajectory, opened.reference, config=job.sep, groups=groups, device=device
        )
        rounds = _protect_blocks(job, this_run, opened, ensemble, groups, numbers)
        report_rounds(
            rounds,
            None,
            this_run=this_run,
            num_rounds=-(-len(numbers) // groups.across.size),
            first_round=0,
            cluster=job.cluster,
            workers=workers,
            device=device,
        )
    if workers.rank == 0:
        _commit(job, this_run, opened)
    return {}


def _protect_blocks(
    job: ProtectData,
    this_run: Run,
    opened: _Opened,
    ensemble: Ensemble,
    groups: WorkerGroups,
    numbers: list[int],
) -> Iterator[Progress]:
    """Protect this group's share of the blocks ``numbers``; yield whenever all groups did one."""
    blocks, dataset = opened.blocks, opened.dataset
    sizes = [len(indices) for indices in blocks.blocks]
    done_before = sum(sizes) - sum(sizes[number] for number in numbers)
    psnr = float("nan")
    for first in range(0, len(numbers), groups.across.size):
        if (mine := first + groups.across.rank) < len(numbers):
            number = numbers[mine]
            clean = dataset.originals(blocks.blocks[number])
            images = perturb_block(number, clean, blocks, dataset, ensemble, config=job.sep)
            if groups.within.rank == 0:
                note = store_block(
                    number,
                    images,
                    blocks,
                    dataset,
                    clean=clean,
                    epsilon_levels=job.sep.epsilon_levels,
                    run=this_run,
                )
                moved = [value for value in note.psnr if value is not None]
                psnr = statistics.median(moved) if moved else float("nan")
        done = numbers[: first + groups.across.size]
        yield Progress(
            blocks_done=len(sizes) - len(numbers) + len(done),
            num_blocks=len(sizes),
            images_done=done_before + sum(sizes[number] for number in done),
            psnr=psnr,
        )


def _commit(job: ProtectData, this_run: Run, opened: _Opened) -> None:
    notes = list(read_notes(this_run))
    assert len(notes) == len(opened.blocks.blocks)
    commit_protected(
        this_run.output,
        notes,
        preview=_preview(job, this_run, opened, notes),
        epsilon_levels=job.sep.epsilon_levels,
        facts={
            **provenance(this_run),
            "variant": job.sep.variant,
            "parents": {
                **this_run.parents,
                "dataset": opened.dataset.digest(),
            },
        },
    )


def _preview(job: ProtectData, this_run: Run, opened: _Opened, notes: list[Note]) -> bytes:
    """Picture of the first protected image of each of some classes."""
    labels, is_protected = opened.dataset.labels, opened.blocks.is_protected
    first_of_class = [
        int(torch.nonzero(is_protected & (labels == label))[0])
        for label in torch.unique(labels[is_protected])[:_PREVIEWED].tolist()
    ]
    protected = []
    for index in first_of_class:
        number, row = divmod(index, job.block_size)
        protected += read_stored(notes[number].part, [row], run=this_run)
    clean = opened.dataset.originals(first_of_class)
    return picture_strip(clean, protected, levels=job.sep.epsilon_levels)


def _open(job: ProtectData) -> _Opened:
    trajectory = open_trajectory(job.trajectory)
    image_size = trajectory.description.config.image_size
    dataset = open_set(job.dataset, image_size=image_size)
    dataset.require_unique_index()
    reference = dataset
    if job.reference is not None:
        reference = open_set(job.reference, image_size=image_size)
    for name, images in (("dataset", dataset), ("reference", reference)):
        check_classes(trajectory, images, name=name)
    check_ensemble(trajectory, dataset.labels, reference, config=job.sep)
    is_protected = choose_images(
        dataset, classes=job.only_classes, share=job.share, seed=job.sep.seed
    )
    blocks = plan(dataset, block_size=job.block_size, is_protected=is_protected)
    num_workers = job.cluster.max_workers
    if num_workers // job.cluster.workers_per_group > len(blocks.blocks):
        raise ValueError(
            f"block_size is {job.block_size}, which makes {len(blocks.blocks)} blocks of "
            f"{len(dataset)} images, too few for {num_workers} workers; expected at most "
            f"{max(1, len(dataset) // num_workers)}"
        )
    return _Opened(trajectory, dataset, reference, blocks)
