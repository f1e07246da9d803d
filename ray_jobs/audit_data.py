"""`ringfence audit-data`: what models trained on protected images reach on clean ones.

Every appropriator is trained on the protected images under every countermeasure and, to compare, on
the clean ones without any; every training is one cell.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from protection.audit.countermeasures import COUNTERMEASURES, appropriate
from protection.models import ModelConfig
from protection.names import nearest
from protection.training import TrainingConfig, start_training
from ray_jobs.cells import open_once, require_seeds, run_cells
from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import connect
from ray_jobs.detection import detect_protected
from ray_jobs.errors import UsageError
from ray_jobs.image_sets import ImageSetConfig, absolute_set, open_set
from ray_jobs.lineage import parent
from ray_jobs.model_files import new_model
from ray_jobs.protected_datasets import find_protected
from ray_jobs.reporting import Row, percent
from ray_jobs.reports.curves import peaks
from ray_jobs.reports.data_report import Curves, build_report, claims
from ray_jobs.reports.stored import commit_report
from ray_jobs.runs import begin, find_run
from storage.datasets import ImageDataset


@dataclass(frozen=True, kw_only=True)
class Appropriator:
    """A party that trains on the protected images as if they were clean."""

    model: ModelConfig
    """What it trains."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """How; each of the audit's seeds takes the place of its seed."""


@dataclass(frozen=True, kw_only=True)
class AuditData:
    """Measure what a model trained on protected images reaches on clean test images."""

    protected: str
    """Location of the protected dataset, as `protect-data` printed it."""
    test: ImageSetConfig
    """Clean test images of the same classes."""
    output: str
    """Location to commit the report to; must not exist yet."""
    appropriators: list[Appropriator]
    """The threat model: every one is tried, under every countermeasure."""
    countermeasures: list[str] = field(default_factory=lambda: ["none"])
    """What appropriators do against the protection, one at a time: among none, jpeg_10, jpeg_30,
    jpeg_50, jpeg_70, jpeg_90, greyscale, bit_depth_2, bit_depth_4, gaussian_blur, median_blur,
    resize_half (on every image, test images too), cutout, mixup, cutmix, randaugment,
    adversarial_training_2, adversarial_training_4 (on every batch; the last two take about four
    times as long). All are in protection/audit/countermeasures.py."""
    clean: ImageSetConfig | None = None
    """The images that were protected; null: those that the protected dataset's manifest names."""
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Repetitions of every training: weights, order of images, augmentation."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Reject an audit that would measure nothing."""
        require_seeds(self.seeds)
        if not self.appropriators:
            raise ValueError("appropriators is empty, so nothing is tried; expected at least one")
        for name in self.countermeasures:
            if name not in COUNTERMEASURES:
                raise ValueError(
                    f"countermeasures has {name!r}, which names none; expected some of "
                    f"{', '.join(COUNTERMEASURES)}{nearest(name, COUNTERMEASURES)}"
                )
        if not self.countermeasures or len(set(self.countermeasures)) < len(self.countermeasures):
            raise ValueError(
                f"countermeasures is {self.countermeasures}; expected different names, at least one"
            )


class Cell(NamedTuple):
    """One training to run."""

    appropriator_index: int
    arm: str
    seed: int
    countermeasure: str = "none"

    def key(self) -> str:
        """Return a name for the finished result, safe in a path."""
        # Without one the name is what it was before there were countermeasures: what such an audit
        # has finished stays valid.
        under = "" if self.countermeasure == "none" else f"-{self.countermeasure}"
        return f"appropriator{self.appropriator_index}-{self.arm}{under}-seed{self.seed}"


class _Shared(NamedTuple):
    """What every training needs; travels to the tasks."""

    image_sets: Mapping[str, ImageSetConfig]
    """By arm, and ``test``."""
    appropriators: list[Appropriator]
    device: str


def run(job: AuditData) -> str:
    """Run every cell, commit the report, and return its location.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: a training failed.
    """
    found = find_protected(job.protected, clean=job.clean)
    image_sets = {
        "protected": found.protected,
        "clean": found.clean,
        "test": absolute_set(job.test),
    }
    images = _open_and_check(job, image_sets)
    # Before the trainings: it takes seconds, and shows whether these are the images.
    detection = None
    if found.epsilon_levels is not None:  # else nobody promises which images belong together
        detection = detect_protected(images["protected"], images["clean"])
    protected = parent("protected", found.protected.source)
    this_run = find_run(job, verb="audit-data", parents=protected)
    connect(job.cluster)
    begin(this_run)
    curves = run_cells(
        _cells(job),
        _train_cell,
        _Shared(image_sets, job.appropriators, "cuda" if job.cluster.uses_gpu else "cpu"),
        cluster=job.cluster,
        this_run=this_run,
        describe=lambda cell, curve: _progress(job, cell, curve),
    )
    report = build_report(
        _by_appropriator(job, curves),
        num_classes=images["test"].num_classes,
        seeds=job.seeds,
        dataset=claims(found.manifest.description),
        detection=detection,
    )
    return commit_report(
        this_run,
        report,
        parents={
            **this_run.parents,
            "clean": images["clean"].digest(),
            "test": images["test"].digest(),
        },
        picture=found.preview(),
    )


def _open_and_check(
    job: AuditData, image_sets: Mapping[str, ImageSetConfig]
) -> dict[str, ImageDataset]:
    image_size = job.appropriators[0].model.image_size  # of no account: nothing is decoded
    images = {name: open_set(config, image_size=image_size) for name, config in image_sets.items()}
    protected, clean, test = images.values()
    if not protected.num_classes == clean.num_classes == test.num_classes:
        raise UsageError(
            f"protected has {protected.num_classes} classes, clean {clean.num_classes} and test "
            f"{test.num_classes}; expected the same classes in all three"
        )
    if len(protected) != len(clean):
        raise UsageError(
            f"protected has {len(protected)} images, but clean ({image_sets['clean'].source}) has "
            f"{len(clean)}; expected the images that were protected"
        )
    for appropriator in job.appropriators:
        new_model(appropriator.model, num_classes=test.num_classes, seed=0)
    return images


def _cells(job: AuditData) -> Iterator[Cell]:
    for seed in job.seeds:  # seeds outermost: an interrupted audit has every appropriator first
        for appropriator_index in range(len(job.appropriators)):
            yield Cell(appropriator_index, "clean", seed)
            for countermeasure in job.countermeasures:
                yield Cell(appropriator_index, "protected", seed, countermeasure)


def _train_cell(shared: _Shared, cell: Cell) -> list[Row]:
    """Train as the appropriator does.

    A training that diverges fails the audit: what it reached would flatter the protection.
    """
    appropriator = shared.appropriators[cell.appropriator_index]
    images, test = (
        open_once(open_set, shared.image_sets[name], image_size=appropriator.model.image_size)
        for name in (cell.arm, "test")
    )
    config = dataclasses.replace(appropriator.training, seed=cell.seed)
    model = new_model(appropriator.model, num_classes=images.num_classes, seed=cell.seed)
    state = start_training(model.to(shared.device), config)
    return [
        {
            "epoch": metrics.epoch,
            "loss": metrics.loss,
            "test_accuracy": metrics.validation_accuracy,
        }
        for metrics in appropriate(
            state, images, test, config=config, countermeasure=cell.countermeasure
        )
    ]


def _progress(job: AuditData, cell: Cell, curve: list[Row]) -> str:
    name = _names(job)[cell.appropriator_index]
    what = f"{cell.arm} #{cell.seed}  {cell.countermeasure}  {name}"
    return f"{percent(peaks([curve])[0]):>7}  {what}"


def _by_appropriator(job: AuditData, curves: Mapping[Cell, list[Row]]) -> dict[str, Curves]:
    """Curves by appropriator, in the order of seeds."""
    return {
        name: Curves(
            clean=[curves[Cell(index, "clean", seed)] for seed in job.seeds],
            protected={
                countermeasure: [
                    curves[Cell(index, "protected", seed, countermeasure)] for seed in job.seeds
                ]
                for countermeasure in job.countermeasures
            },
        )
        for index, name in enumerate(_names(job))
    }


def _names(job: AuditData) -> list[str]:
    """Name of every appropriator: its architecture, with its place where two have the same."""
    architectures = [appropriator.model.architecture for appropriator in job.appropriators]
    return [
        f"appropriator {index}: {name}" if architectures.count(name) > 1 else name
        for index, name in enumerate(architectures)
    ]
