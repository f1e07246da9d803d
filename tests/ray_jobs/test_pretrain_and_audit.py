"""The jobs around the main one: pre-training shared by workers, and an audit that resumes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from protection.audit.families import AttackFamily
from protection.training import TrainingConfig
from ray_jobs import audit_model, pretrain
from ray_jobs.attack_cells import cells
from ray_jobs.audited_models import resolve
from ray_jobs.cluster import ClusterConfig
from ray_jobs.domains import DomainConfig
from ray_jobs.errors import UsageError
from ray_jobs.model_files import describe
from ray_jobs.trajectories import open_trajectory
from storage.blobs import open_blobs
from storage.checkpoints import read_weights
from storage.commit import read_manifest, read_part
from storage.dataset_writer import parquet_block
from storage.datasets import open_dataset
from storage.location import Location
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, TINY, run_here
from tests.ray_jobs.test_protect_model import assert_same

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def digits_as_parquet(folder: Location, split: str) -> str:
    """The digits of ``split`` in one Parquet file below ``folder``."""
    images = open_dataset(f"digits:{split}", image_size=8)
    everything = torch.arange(len(images))
    data = parquet_block(
        images.originals(everything),
        images.labels,
        images.index,
        class_names=images.class_names,
        paths=images.paths(everything),
        columns=None,
    )
    open_blobs(folder / split).put("digits.parquet", data)
    return str(folder / split)


@pytest.mark.s3
def test_pretraining_does_not_depend_on_workers_or_on_where_images_are(
    cluster: str, tmp_path: Path, s3_location: Location
) -> None:
    here = pretrain.Pretrain(
        model=TINY,
        original=ORIGINAL,
        output=str(tmp_path / "here"),
        training=TrainingConfig(epochs=4, batch_size=32, learning_rate=0.05, shards=2),
        trajectory_checkpoints=2,
    )
    there = dataclasses.replace(
        here,
        original=DomainConfig(
            train=digits_as_parquet(s3_location, "train"),
            test=digits_as_parquet(s3_location, "test"),
            classes=ORIGINAL.classes,
        ),
        output=str(tmp_path / "there"),
        cluster=ClusterConfig(workers=2),
    )
    locations = [
        str(run_here(here, pretrain.train_loop_per_worker, verb="pretrain")),
        pretrain.run(there),
    ]
    first, second = (read_weights(location) for location in locations)
    assert_same(first, second)
    description = describe(locations[0])
    assert (description.num_classes, len(description.class_names)) == (5, 5)
    metrics = read_manifest(locations[0]).description["metrics"]
    assert metrics["test_accuracy"] > 0.7
    trajectories = [open_trajectory(location) for location in locations]
    for trajectory in trajectories:
        assert trajectory.checkpoints == [
            "checkpoint-0002.safetensors",
            "checkpoint-0004.safetensors",
        ]
    for number in range(2):
        one, two = (t.load(number).network.state_dict() for t in trajectories)
        assert_same(one, two)
    last = trajectories[0].load(1)
    assert not last.training
    assert_same(first, last.network.state_dict())
    assert not torch.equal(first["fc.weight"], trajectories[0].load(0).network.fc.weight)


def test_audit_measures_three_starts_and_repeats_no_finished_cell(
    cluster: str, model: str, tmp_path: Path
) -> None:
    job = audit_model.AuditModel(
        protected=model,
        unprotected=model,
        original=ORIGINAL,
        restricted=[RESTRICTED],
        output=str(tmp_path / "audit"),
        adversary=[
            AttackFamily(methods=["all_layers", "head_only"], finetune_lrs=[0.05], batch_sizes=[32])
        ],
        epochs=2,
        seeds=[0, 1],
        cluster=ClusterConfig(workers=3),
    )
    # As an interrupted audit left it: one cell finished, with a value no training would give.
    audited = resolve(job)
    cell = next(cells(audit_model._plan(job, audited), seeds=job.seeds))
    kept = tmp_path / "audit.run" / "cells"
    kept.mkdir(parents=True)
    curve = [{"epoch": epoch, "loss": 1.0, "test_accuracy": 0.123} for epoch in range(2)]
    (kept / f"{cell.key()}.json").write_text(json.dumps(curve))

    location = audit_model.run(job)
    report = json.loads(read_part(location, "report.json"))
    curves = [
        rows
        for found in report["cells"]
        for start in found["starts"].values()
        for rows in start["curve"]["seeds"]
    ]
    assert len(curves) == 2 * 3 * 2
    assert curves.count(curve) == 1
    gains = [cell["transfer_gain"]["mean"] for cell in report["cells"]]
    assert gains == sorted(gains, reverse=True)
    assert report["headline"]["worst_transfer_gain"] == gains[0]
    # Protected and unprotected are one model here: what they reach must be equal.
    (other,) = (found for found in report["cells"] if found["attack"].startswith("head_only"))
    one, two = (other["starts"][start]["final"] for start in ("protected", "unprotected"))
    assert one["mean"] == pytest.approx(two["mean"], abs=1e-6)
    table = read_part(location, "report.md").decode()
    assert "| head_only sgd 0.05 batch 32 |" in table
    assert table.startswith("The protection held under 2 attacks") == (gains[0] <= 0)
    assert report["not_tested"][0] == "method redrawn_head"


def test_audit_of_a_model_without_a_protection_asks_for_what_it_lacks(
    model: str, tmp_path: Path
) -> None:
    job = audit_model.AuditModel(protected=model, output=str(tmp_path / "audit"))
    with pytest.raises(UsageError, match=r"was not made by protect-model.*expected unprotected"):
        audit_model.run(job)
