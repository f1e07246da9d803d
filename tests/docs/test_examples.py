"""The examples, run as they are printed but at a tiny size, in this process."""

import dataclasses
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

from protection.audit.attacks import NO_MEANS, Setup
from protection.audit.methods import begin
from ray_jobs import audit_model, pretrain, protect_data, protect_model, sweep
from ray_jobs.attack_cells import Cell, Target, fine_tune_cell
from ray_jobs.audited_models import resolve
from ray_jobs.cli import parse
from ray_jobs.model_files import describe, model_from
from ray_jobs.sweep_space import ends, with_values
from storage.blobs import open_blobs
from storage.commit import read_manifest
from storage.copying import copy_commit
from storage.datasets import open_dataset
from storage.errors import AlreadyCommittedError
from storage.location import Location, parse_location
from tests.docs.pages import ROOT, write_files
from tests.ray_jobs.conftest import (
    ORIGINAL,
    RESTRICTED,
    location,
    location_made_here,
    model,
    s3_endpoint,
    s3_location,
    trajectory,
)
from tests.storage.image_files import parquet_bytes, to_bytes

__all__ = ["location", "model", "s3_endpoint", "s3_location", "trajectory"]

JOBS: dict[str, Any] = {
    "pretrain": pretrain,
    "protect-model": protect_model,
    "protect-data": protect_data,
}
ONE_ROUND = [
    *("--sophon.rounds", "1", "--sophon.episodes_per_round", "1", "--sophon.episode_length", "1"),
    *("--sophon.query_size", "4", "--sophon.reinforcement_batch_size", "8"),
    *(
        "--sophon.max_original_drop",
        "1",
        "--cluster.workers",
        "1",
        "--cluster.gpus_per_worker",
        "0",
    ),
    *("--sophon.adversary", "[{methods: [redrawn_head], batch_sizes: [4]}]"),
]


@pytest.fixture
def example(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """The folder of a reader of the example page that the test names."""
    write_files(ROOT / "docs" / "examples" / f"{request.param}.md", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in [name for name in set(sys.modules) - before if name.startswith("my_")]:
        del sys.modules[name]


def of(name: str) -> Callable[[Any], Any]:
    return pytest.mark.parametrize("example", [name], indirect=True)


def run(*arguments: str) -> str:
    """Run a command line to its end; returns what it committed."""
    name, job = parse(arguments)
    module = JOBS[name]
    made = location_made_here(module.absolute(job), module.train_loop_per_worker, verb=name)
    return str(made)


def draw(folder: Path, names: list[str], *, images: int, first: int = 0) -> None:
    """Write a folder of class folders, images of which no two are alike."""
    for label, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(first, first + images):
            rng = torch.Generator().manual_seed(1000 * label + number)
            pixels = torch.randint(256, (16, 16, 3), generator=rng, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(folder / name / f"{number:04d}.png")


@of("own-model")
def test_own_model_and_own_images_are_protected_and_load_without_ringfence(example: Path) -> None:
    for split, images in (("train", 8), ("test", 2)):
        draw(example / "data" / "animals" / split, ["cat", "cow", "dog", "hen"], images=images)
        draw(example / "data" / "faces" / split, ["anna", "ben"], images=images)
    runpy.run_path("export_weights.py")
    output = run(
        *("protect-model", "--config", "protect.yaml", "--network.image_size", "16"),
        *ONE_ROUND,
    )
    (weights,) = Path(output).glob("model.*.safetensors")
    network = timm.create_model("resnet18", num_classes=4)
    network.load_state_dict(load_file(weights))
    assert describe(output).class_names == ["cat", "cow", "dog", "hen"]

    output = run(
        *("pretrain", "--config", "pretrain.yaml", "--model.image_size", "16"),
        *("--training.epochs", "1", "--training.batch_size", "16"),
    )
    assert describe(output).config.architecture == "my_networks:small_cnn"


@of("two-domains")
def test_two_domains_are_protected_and_audited_together(example: Path, model: str) -> None:
    output = run("protect-model", "--config", "two-domains.yaml", "--model", model, *ONE_ROUND)
    parents = read_manifest(output).description["parents"]
    assert len({str(digests) for digests in parents["restricted"]}) == 2

    _, job = parse(["audit-model", "--config", "audit-two-domains.yaml", "--epochs", "1"])
    audited = resolve(job)
    assert audited.protected == output
    plan = audit_model._plan(job, audited)
    assert [target.number for target in plan] == [0, 1]
    for target, attacks in plan.items():
        (row,) = fine_tune_cell(audited, Cell(target, attacks[0], "protected", 0))
        assert 0 <= row["test_accuracy"] <= 1


def protected_images(output: str) -> dict[str, torch.Tensor]:
    """Protected images by the path that they had."""
    images = open_dataset(output, image_size=8)
    rows = torch.arange(len(images))
    return dict(zip(map(str, images.paths(rows)), images.originals(rows), strict=True))


@of("growing-dataset")
@pytest.mark.parametrize("variance_reduction", [False, True])
def test_new_images_are_protected_alone_and_old_ones_as_the_page_says(
    example: Path, trajectory: str, variance_reduction: bool
) -> None:
    names = [str(digit) for digit in range(10)]
    draw(example / "data" / "january", names, images=3)
    draw(example / "data" / "february", names, images=1, first=3)
    draw(example / "data" / "grown", names, images=4)
    options = [
        *("--config", "february.yaml", "--trajectory", trajectory, "--sep.members", "4"),
        *("--sep.steps", "4", "--sep.inner_steps", "3", "--block_size", "10"),
        f"--sep.variance_reduction={str(variance_reduction).lower()}",
    ]
    outputs = {
        month: protected_images(
            run("protect-data", *options, "--dataset.source", f"data/{month}", "--output", month)
        )
        for month in ("january", "february", "grown")
    }
    old, again = outputs["january"], outputs["grown"]
    assert len(old) == 30
    assert len(outputs["february"]) == 10
    assert again.keys() == old.keys() | outputs["february"].keys()
    is_same = [torch.equal(old[name], again[name]) for name in old]
    assert all(is_same) is not variance_reduction
    with pytest.raises(AlreadyCommittedError, match="is committed already and never rewritten"):
        run("protect-data", *options, "--dataset.source", "data/grown", "--output", "january")


@of("own-adversary")
def test_an_adversary_of_ones_own_trains_what_it_returns(example: Path, model: str) -> None:
    _, job = parse(["audit-model", "--config", "own-adversary.yaml", "--epochs", "1"])
    few = [dataclasses.replace(RESTRICTED, max_train_images=64, max_test_images=50)]
    job = dataclasses.replace(
        job, protected=model, unprotected=model, original=ORIGINAL, restricted=few
    )
    attacks = job.families()[0].attacks()
    assert len(attacks) == 4
    audited = resolve(job)
    (row,) = fine_tune_cell(audited, Cell(Target("restricted", 0), attacks[0], "protected", 0))
    assert 0 <= row["test_accuracy"] <= 1
    classifier = model_from(describe(model), weights=model)
    (group,) = begin(Setup(classifier, attacks[0], NO_MEANS, 0), num_classes=5)
    of_group = {id(parameter) for parameter in group.parameters}
    trained = {n for n, p in classifier.network.named_parameters() if id(p) in of_group}
    assert trained == {"fc.weight", "fc.bias", "norm.weight", "norm.bias"}


@of("sweep")
def test_a_space_of_ones_own_builds_recipes_at_both_its_ends(example: Path, model: str) -> None:
    _, job = parse(["sweep", "--config", "sweep.yaml"])
    opened = sweep._open(job)
    assert (opened.num_trials, len(opened.space)) == (12, 3)
    assert opened.audit.threat_model == "short"
    trial = with_values(opened.base, {name: ends(name, d)[0] for name, d in opened.space.items()})
    assert trial.sophon.rounds == 20
    assert trial.sophon.adversary[0].finetune_lrs == [1e-3]


@pytest.mark.s3
@of("cluster-s3")
def test_images_and_models_in_a_bucket_are_read_and_written_there(
    example: Path, model: str, s3_location: Location
) -> None:
    def put_images(name: str, class_names: list[str]) -> str:
        rng = torch.Generator().manual_seed(len(name))
        labels = [number % len(class_names) for number in range(40)]
        pixels = torch.randint(256, (40, 8, 8, 3), generator=rng, dtype=torch.uint8)
        images = [to_bytes(Image.fromarray(image.numpy())) for image in pixels]
        place = s3_location / f"images/{name}"
        open_blobs(place).put("0.parquet", parquet_bytes(images, labels, class_names=class_names))
        return str(place)

    animals = list("abcde")
    faces = {split: put_images(f"faces/{split}", ["anna", "ben"]) for split in ("train", "test")}
    list(copy_commit(parse_location(model), s3_location / "animals/model"))
    output = run(
        *("protect-model", "--config", "on-s3.yaml"),
        *("--model", str(s3_location / "animals/model")),
        *("--original.train", put_images("animals/train", animals)),
        *("--original.test", put_images("animals/test", animals)),
        *("--restricted", f"[{{train: '{faces['train']}', test: '{faces['test']}'}}]"),
        *("--output", str(s3_location / "animals/protected")),
        *ONE_ROUND,
    )
    manifest = read_manifest(output)
    assert manifest.description["recipe"]["model"] == str(s3_location / "animals/model")
    assert list(manifest.parts) == ["model.safetensors"]
