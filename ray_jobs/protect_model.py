"""`ringfence protect-model`: SOPHON on a committed model."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from protection.denoisers import Blueprint, DenoiserConfig
from protection.evaluation import accuracy
from protection.models import Classifier, ModelConfig
from protection.parted import whole_state
from protection.released import ReleasedModel
from protection.sophon.algorithm import protect, start
from protection.sophon.config import SophonConfig
from protection.sophon.domains import Domains, check_domains
from protection.workers import Workers
from ray_jobs import domains
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.domains import Domain, DomainConfig, digests, open_domain
from ray_jobs.large_models import grouped_workers, place, require_memory
from ray_jobs.launch import launch
from ray_jobs.lineage import parent
from ray_jobs.model_files import (
    ModelDescription,
    check_described,
    commit_model,
    describe,
    model_from,
    new_denoiser,
)
from ray_jobs.reporting import Row, duration
from ray_jobs.run_checkpoints import restore
from ray_jobs.runs import Run, provenance
from ray_jobs.train_loop import failing_clearly, report_rounds
from ray_jobs.workers import current_device, current_workers
from storage.location import parse_location


@dataclass(frozen=True, kw_only=True)
class ProtectModel:
    """Make a model resist being fine-tuned to restricted domains, and keep its accuracy."""

    model: str
    """The model to protect: a committed location, as `pretrain` printed it, or a .safetensors
    file, or the .safetensors.index.json of several."""
    original: DomainConfig
    """The domain that the model was trained on and must keep serving."""
    restricted: list[DomainConfig]
    """The domains that it must not be fine-tuned to; each episode draws one."""
    output: str
    """Location to commit the protected model to; must not exist yet."""
    network: ModelConfig | None = None
    """What a .safetensors file holds the weights of, if of a classifier; null for a committed
    model, which says so itself."""
    denoiser: DenoiserConfig | None = None
    """Likewise, if of a diffusion model."""
    sophon: SophonConfig = field(default_factory=SophonConfig)
    cluster: GroupedClusterConfig = field(default_factory=GroupedClusterConfig)

    def __post_init__(self) -> None:
        """Reject a cluster that the work cannot fill, and a model described twice or not at all."""
        check_described("model", self.model, self.network, self.denoiser)
        group_size = self.cluster.workers_per_group
        for name, parts in (
            ("memory.batch_parts", self.sophon.memory.batch_parts),
            ("reinforcement_shards", self.sophon.reinforcement_shards),
        ):
            if parts % group_size:
                raise ValueError(
                    f"cluster.workers_per_group is {group_size}, but sophon.{name} is {parts}, "
                    "which the workers of a group compute between them; expected a multiple of "
                    f"{group_size}"
                )
        if self.cluster.max_workers // group_size > self.sophon.episodes_per_round:
            raise ValueError(
                f"cluster.workers is {self.cluster.workers}, but sophon.episodes_per_round is "
                f"{self.sophon.episodes_per_round}, so the others would idle; expected at most "
                f"{self.sophon.episodes_per_round} workers (or groups of them), or more episodes"
            )

    def parents(self) -> dict[str, object]:
        """The model, as it is now."""
        return parent("model", self.model)


class _Opened(NamedTuple):
    description: ModelDescription
    original: Domain
    restricted: list[Domain]

    def training_images(self) -> Domains:
        return Domains(
            self.original.train,
            self.original.validation,
            [domain.train for domain in self.restricted],
        )


def absolute(job: ProtectModel) -> ProtectModel:
    """``job`` with absolute local paths: workers have other working directories."""
    return dataclasses.replace(
        job,
        model=str(parse_location(job.model)),
        original=domains.absolute(job.original),
        restricted=[domains.absolute(domain) for domain in job.restricted],
    )


def run(job: ProtectModel) -> str:
    """Protect, commit, and return the location of the protected model.

    Raises:
        ValueError, StorageError: the recipe cannot be run; nothing was started.
        JobError: the run failed.
    """
    job = absolute(job)
    # What does not fit should fail here, before a cluster starts.
    model_from(_open(job).description, weights=job.model)
    return launch(
        job,
        verb="protect-model",
        loop=train_loop_per_worker,
        format_row=format_row,
        step_field="round_index",
    )


def format_row(row: Row) -> str:
    """One line of progress; of a round that was rolled back it says only that."""
    query_loss, finetuned = row["query_loss"], row["finetuned_accuracy"]
    simulated = (
        f"query {'-' if query_loss is None else f'{query_loss:.3g}'}  "
        f"tuned {'-' if finetuned is None else f'{finetuned:.3f}'}"
    )
    return (
        f"sophon {row['round_index'] + 1}/{row['num_rounds']}  original "
        f"{row['original_accuracy']:.3f} {-row['original_drop']:+.3f}  "
        f"{'rolled back' if row['is_rolled_back'] else simulated}  "
        f"eta {duration(row['eta_seconds'])}"
    )


def train_loop_per_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Protect one model with SOPHON; every Ray Train worker runs this function."""
    job = config["job"]
    return failing_clearly(lambda: _protect(job, config["run"]), cluster=job.cluster)


def _protect(job: ProtectModel, this_run: Run) -> dict[str, Any]:
    everyone, device = current_workers(), current_device()
    workers = grouped_workers(job.cluster.workers_per_group)
    opened = _open(job)

    model = model_from(opened.description, weights=job.model)
    if isinstance(model, Classifier):  # of a denoiser there is no estimate
        require_memory(
            model,
            job.sophon,
            image_size=opened.description.config.image_size,
            cluster=job.cluster,
            device=device,
        )
    model = place(model, job.sophon, workers=workers, device=device)
    state = start(model, job.sophon)
    resumed = restore(state, this_run, workers=everyone, device=device)
    report_rounds(
        protect(state, opened.training_images(), config=job.sophon, workers=workers),
        state,
        this_run=this_run,
        num_rounds=job.sophon.rounds,
        first_round=state.next_round,
        cluster=job.cluster,
        workers=everyone,
        device=device,
        resumed=resumed,
    )
    del state  # the optimizers' memory is the second model's now
    unprotected = model_from(opened.description, weights=job.model)
    unprotected = place(unprotected, job.sophon, workers=workers, device=device)
    metrics = _measure(opened, unprotected, model, workers)
    weights = whole_state(model.network.state_dict())
    if everyone.rank == 0:
        facts = {
            **provenance(this_run),
            "metrics": metrics,
            "parents": {
                **this_run.parents,
                "original": digests(opened.original),
                "restricted": [digests(domain) for domain in opened.restricted],
            },
        }
        commit_model(str(this_run.output), model, opened.description, facts=facts, weights=weights)
    return dict(metrics)


def _measure(
    opened: _Opened, unprotected: ReleasedModel, protected: ReleasedModel, workers: Workers
) -> Mapping[str, float]:
    sets = {"validation": opened.original.validation, "test": opened.original.test}
    return {
        f"{name}_{split}_accuracy": accuracy(
            model, images, device=protected.device, workers=workers
        )
        for name, model in (("unprotected", unprotected), ("protected", protected))
        for split, images in sets.items()
    }


def _open(job: ProtectModel) -> _Opened:
    if (config := _described(job)) is None:
        description = describe(job.model)
        original = open_domain(job.original, image_size=description.config.image_size)
    else:
        original = open_domain(job.original, image_size=config.image_size)
        train = original.train
        description = ModelDescription(config, train.num_classes, list(train.class_names))
    restricted = [
        open_domain(domain, image_size=description.config.image_size) for domain in job.restricted
    ]
    opened = _Opened(description, original, restricted)
    check_domains(
        opened.training_images(),
        task=description.task,
        model_classes=description.model_classes,
        config=job.sophon,
    )
    return opened


def _described(job: ProtectModel) -> ModelConfig | Blueprint | None:
    """What the recipe says of a .safetensors file's model."""
    if job.denoiser is not None:
        return new_denoiser(job.denoiser, seed=0).blueprint
    return job.network
