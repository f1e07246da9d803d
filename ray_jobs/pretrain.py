"""`ringfence pretrain`: ordinary training of a model on the original domain."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, cast

from protection.denoisers import Denoiser, DenoiserConfig
from protection.evaluation import accuracy
from protection.models import ModelConfig, load_weights
from protection.released import ReleasedModel
from protection.training import TrainingConfig, TrainingState, start_training, train
from ray_jobs import domains
from ray_jobs.cluster import ClusterConfig
from ray_jobs.domains import Domain, DomainConfig, digests, open_domain
from ray_jobs.launch import launch
from ray_jobs.lineage import parent
from ray_jobs.model_files import ModelDescription, commit_model, new_denoiser, new_model
from ray_jobs.reporting import Row, duration
from ray_jobs.run_checkpoints import restore
from ray_jobs.runs import Run, provenance
from ray_jobs.train_loop import failing_clearly, report_rounds
from ray_jobs.trajectories import TRAJECTORY, keeping_trajectory, noted_parts
from ray_jobs.workers import current_device, current_workers
from storage.checkpoints import read_weights
from storage.location import parse_location


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """Train a classifier or a denoiser on the original domain and commit it as a model."""

    original: DomainConfig
    output: str
    """Location to commit the model to; must not exist yet."""
    model: ModelConfig | None = None
    """The classifier to train; null: a denoiser."""
    denoiser: DenoiserConfig | None = None
    """The diffusion model to train; null: a classifier."""
    weights: str | None = None
    """Start from these weights: a committed model, a .safetensors file, or the
    .safetensors.index.json of several; null: drawn from the seed."""
    new_head: bool = False
    """Draw the head anew and take the rest from `weights`, which may be of other classes."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    trajectory_checkpoints: int | None = None
    """Evenly spaced checkpoints to commit with the model: the trajectory that protect-data needs
    (released: 30); null: none."""
    cluster: ClusterConfig = field(default_factory=ClusterConfig)

    def __post_init__(self) -> None:
        """Reject what cannot be trained, and a cluster that the work cannot fill."""
        self._check_model()
        checkpoints, epochs = self.trajectory_checkpoints, self.training.epochs
        if checkpoints is not None and not 1 <= checkpoints <= epochs:
            raise ValueError(
                f"trajectory_checkpoints is {checkpoints}, but training.epochs is {epochs}; "
                f"expected 1 to {epochs}, or null for none"
            )
        if self.new_head and self.weights is None:
            raise ValueError(
                "new_head is true, but weights is null, so everything is new; expected weights to "
                "take the rest from, or new_head: false"
            )
        if self.cluster.max_workers > self.training.shards:
            raise ValueError(
                f"cluster.workers is {self.cluster.workers}, but training.shards is "
                f"{self.training.shards}, so the others would idle; expected at most "
                f"{self.training.shards} workers, or more shards"
            )

    def _check_model(self) -> None:
        """Reject two models, none, and what a denoiser would ignore."""
        if (self.model is None) == (self.denoiser is None):
            number = "null" if self.model is None else "given"
            raise ValueError(
                f"model and denoiser are both {number}; expected exactly one: model for a "
                "classifier, denoiser for a diffusion model"
            )
        if self.denoiser is None:
            return
        for name, value in (
            ("training.label_smoothing", self.training.label_smoothing),
            ("trajectory_checkpoints", self.trajectory_checkpoints),
        ):
            if value:
                raise ValueError(
                    f"{name} is {value}, but a denoiser has no classes; expected to leave it out"
                )

    def parents(self) -> dict[str, object]:
        """The weights it begins with, as they are now."""
        return parent("weights", self.weights)

    @property
    def image_size(self) -> int:
        """Height and width that images are resized to, pixels."""
        config = self.model or self.denoiser
        assert config is not None  # _check_model
        return config.image_size


def absolute(job: Pretrain) -> Pretrain:
    """``job`` with absolute local paths: workers have other working directories."""
    return dataclasses.replace(
        job,
        original=domains.absolute(job.original),
        weights=job.weights and str(parse_location(job.weights)),
    )


def run(job: Pretrain) -> str:
    """Train, commit, and return the location of the model.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: the run failed.
    """
    job = absolute(job)
    domain = open_domain(job.original, image_size=job.image_size)
    _start_model(job, domain)  # a wrong name or weight should fail here, before a cluster starts
    return launch(
        job,
        verb="pretrain",
        loop=train_loop_per_worker,
        format_row=format_row,
        step_field="epoch",
    )


def format_row(row: Row) -> str:
    """One line of progress."""
    return (
        f"pretrain {row['epoch'] + 1}/{row['num_rounds']}  loss {row['loss']:.3f}  validation "
        f"{row['validation_accuracy']:.3f}  {row['seconds']:.1f} s/epoch  eta "
        f"{duration(row['eta_seconds'])}"
    )


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train one model; every Ray Train worker runs this function."""
    job = config["job"]
    return failing_clearly(lambda: _train(job, config["run"]), cluster=job.cluster)


def _train(job: Pretrain, this_run: Run) -> dict[str, Any]:
    workers, device = current_workers(), current_device()
    domain = open_domain(job.original, image_size=job.image_size)
    state = start_training(_start_model(job, domain).to(device), job.training)
    resumed = restore(state, this_run, workers=workers, device=device)
    epochs = train(state, domain.train, domain.validation, config=job.training, workers=workers)
    if job.trajectory_checkpoints is not None and workers.rank == 0:
        epochs = keeping_trajectory(
            epochs,
            state,
            this_run,
            checkpoints=job.trajectory_checkpoints,
            num_epochs=job.training.epochs,
        )
    report_rounds(
        epochs,
        state,
        this_run=this_run,
        num_rounds=job.training.epochs,
        first_round=state.next_epoch,
        cluster=job.cluster,
        workers=workers,
        device=device,
        resumed=resumed,
    )
    sets = {"validation_accuracy": domain.validation, "test_accuracy": domain.test}
    metrics = {
        name: accuracy(state.model, images, device=device, workers=workers)
        for name, images in sets.items()
    }
    if workers.rank == 0:
        _commit(job, this_run, state, domain, metrics)
    return metrics


def _commit(
    job: Pretrain, this_run: Run, state: TrainingState, domain: Domain, metrics: dict[str, float]
) -> None:
    staged = noted_parts(this_run)
    facts = {
        **provenance(this_run),
        "metrics": metrics,
        "parents": {**this_run.parents, "original": digests(domain)},
        TRAJECTORY: list(staged),
    }
    description = ModelDescription(
        job.model or cast(Denoiser, state.model).blueprint,
        domain.train.num_classes,
        list(domain.train.class_names),
    )
    commit_model(str(this_run.output), state.model, description, facts=facts, staged=staged)


def _start_model(job: Pretrain, domain: Domain) -> ReleasedModel:
    seed, num_classes = job.training.seed, domain.train.num_classes
    model: ReleasedModel
    if job.denoiser is not None:
        model = new_denoiser(job.denoiser, seed=seed)
    else:
        assert job.model is not None  # Pretrain refuses it
        model = new_model(job.model, num_classes=num_classes, seed=seed)
    if job.weights is not None:
        load_weights(model, read_weights(job.weights), source=job.weights, keeps_head=job.new_head)
    return model
