"""What protect-data does to a block and refuses of a dataset, without a cluster."""

import dataclasses
import functools
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from protection.sep.algorithm import perturb
from protection.sep.config import SepConfig
from protection.sep.gradients import Ensemble
from protection.workers import ALONE
from ray_jobs import verify
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.ensembles import load_ensemble
from ray_jobs.errors import JobError
from ray_jobs.image_sets import ImageSetConfig, open_set
from ray_jobs.protect_data import ProtectData, run
from ray_jobs.protected_blocks import (
    choose_images,
    finished_blocks,
    perturb_block,
    plan,
    read_notes,
    store_block,
)
from ray_jobs.protected_datasets import commit_protected
from ray_jobs.runs import Run, find_run, provenance
from ray_jobs.trajectories import open_trajectory
from ray_jobs.workers import WorkerGroups
from storage.commit import commit, read_part
from storage.dataset_writer import parquet_block
from storage.datasets import open_dataset
from storage.errors import DatasetError
from storage.original_images import original_from_bytes
from tests.storage.image_files import parquet_bytes, to_bytes

MODES = ("L", "LA", "RGB", "RGBA")
NAMES = [str(digit) for digit in range(10)]


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was started")

    # Not ray.init, which is not called where the session's cluster is up.
    monkeypatch.setattr("ray_jobs.launch.connect", start)


def picture(number: int) -> Image.Image:
    """Image ``number`` of many of different sizes and modes."""
    rng = np.random.default_rng(number)
    mode = MODES[number % 4]
    size = (5 + number % 7, 4 + number % 5)
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (*size, *channels), dtype=np.uint8), mode)


@pytest.fixture
def mixed(tmp_path: Path) -> str:
    """Parquet file of 40 images of many sizes and modes, with an index and another column."""
    path = tmp_path / "mixed.parquet"
    path.write_bytes(
        parquet_bytes(
            [to_bytes(picture(number)) for number in range(40)],
            [number % 10 for number in range(40)],
            class_names=NAMES,
            index=[1000 + 7 * number for number in range(40)],
        )
    )
    return str(path)


def a_job(trajectory: str, source: str, output: Path, **changes: object) -> ProtectData:
    return dataclasses.replace(
        ProtectData(
            dataset=ImageSetConfig(source=source),
            trajectory=trajectory,
            output=str(output),
            sep=SepConfig(epsilon_levels=6, members=2, steps=3),
            block_size=16,
        ),
        **changes,
    )


def protect(job: ProtectData) -> Run:
    """Run all blocks in this process, and commit."""
    this_run = find_run(job, verb="protect-data")
    opened = open_trajectory(job.trajectory)
    dataset = open_set(job.dataset, image_size=opened.description.config.image_size)
    chosen = choose_images(dataset, classes=job.only_classes, share=job.share, seed=job.sep.seed)
    blocks = plan(dataset, block_size=job.block_size, is_protected=chosen)
    ensemble = load_ensemble(
        opened,
        dataset,
        config=job.sep,
        groups=WorkerGroups(ALONE, ALONE),
        device=torch.device("cpu"),
    )
    for number, indices in enumerate(blocks.blocks):
        clean = dataset.originals(indices)
        images = perturb_block(number, clean, blocks, dataset, ensemble, config=job.sep)
        store_block(
            number,
            images,
            blocks,
            dataset,
            clean=clean,
            epsilon_levels=job.sep.epsilon_levels,
            run=this_run,
        )
    commit_protected(
        this_run.output,
        list(read_notes(this_run)),
        preview=b"",
        epsilon_levels=job.sep.epsilon_levels,
        facts=provenance(this_run),
    )
    return this_run


@pytest.mark.parametrize("aligned", [False, True])
def test_any_size_and_mode_comes_back_within_the_budget_with_all_its_columns(
    aligned: bool, mixed: str, trajectory: str, tmp_path: Path
) -> None:
    sep = SepConfig(epsilon_levels=6, members=2, steps=3, feature_alignment=aligned, batch_size=9)
    this_run = protect(a_job(trajectory, mixed, tmp_path / "protected", sep=sep))
    assert finished_blocks(this_run) == {0, 1, 2}
    found = json.loads(verify.run(verify.Verify(str(this_run.output))))
    assert found["num_images"] == found["num_changed"] == 40
    assert found["max_change_levels"] == 3  # three steps of one level
    rows = [
        row
        for number in range(3)
        for row in pq.read_table(
            io.BytesIO(read_part(this_run.output, f"data-{number:05d}.parquet"))
        ).to_pylist()
    ]
    assert [row["index"] for row in rows] == [1000 + 7 * number for number in range(40)]
    assert {row["wide"] for row in rows} == {"x"}
    for number, row in enumerate(rows):
        image, clean = Image.open(io.BytesIO(row["image"]["bytes"])), picture(number)
        assert (image.format, image.mode, image.size) == ("PNG", clean.mode, clean.size)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    epsilon_levels=st.integers(1, 32),
    seed=st.integers(0, 2**16),
    size=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    channels=st.integers(1, 4),
)
def test_what_is_stored_is_never_outside_the_budget(
    epsilon_levels: int, seed: int, size: tuple[int, int], channels: int, trajectory: str
) -> None:
    config = SepConfig(epsilon_levels=epsilon_levels, step_size_levels=1.7, members=2, steps=4)
    rng = torch.Generator().manual_seed(seed)
    clean = [torch.randint(256, (channels, *size), dtype=torch.uint8, generator=rng)]
    targets = torch.tensor([seed % 10])
    found = perturb(clean, targets, ensemble_of(trajectory), image_size=8, config=config)
    data = parquet_block(
        found, targets, torch.tensor([0]), class_names=NAMES, paths=[None], columns=None
    )
    (row,) = pq.read_table(io.BytesIO(data)).to_pylist()
    stored = original_from_bytes(row["image"]["bytes"], name="row 0")
    assert stored.shape == clean[0].shape
    assert int((stored.int() - clean[0].int()).abs().max()) <= epsilon_levels


@functools.cache
def ensemble_of(trajectory: str) -> Ensemble:
    return load_ensemble(
        open_trajectory(trajectory),
        open_dataset("digits:train", image_size=8),
        config=SepConfig(members=2),
        groups=WorkerGroups(ALONE, ALONE),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("feature_alignment", [False, True])
def test_streamed_members_give_the_same_files(
    mixed: str, trajectory: str, tmp_path: Path, feature_alignment: bool
) -> None:
    parts = []
    for stream in (False, True):
        sep = SepConfig(
            epsilon_levels=6,
            members=2,
            steps=3,
            stream_members=stream,
            feature_alignment=feature_alignment,
        )
        job = a_job(trajectory, mixed, tmp_path / str(stream), sep=sep)
        parts.append([note.part for note in read_notes(protect(job))])
    assert parts[0] == parts[1]


def test_only_the_chosen_images_change(mixed: str, trajectory: str, tmp_path: Path) -> None:
    job = a_job(trajectory, mixed, tmp_path / "protected", share=0.5, only_classes=[1, "2", 3, 4])
    this_run = protect(job)
    clean = open_dataset(mixed, image_size=8)
    protected = open_dataset(str(this_run.output), image_size=8)
    everything = torch.arange(40)
    changed = torch.tensor(
        [
            not torch.equal(a, b)
            for a, b in zip(
                protected.originals(everything), clean.originals(everything), strict=True
            )
        ]
    )
    assert int(changed.sum()) == 8  # half of the 16 images of four classes
    assert set(clean.labels[changed].tolist()) <= {1, 2, 3, 4}
    larger = choose_images(clean, classes=job.only_classes, share=0.75, seed=0)
    assert int(larger.sum()) == 12
    assert bool(larger[changed].all())  # a smaller share is part of a larger one


def test_a_disk_that_changes_pixels_is_noticed_before_the_block_counts(
    mixed: str, trajectory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def brighter(images: list[torch.Tensor], *arguments: object, **options: object) -> bytes:
        return written([255 - image for image in images], *arguments, **options)

    import ray_jobs.protected_blocks

    written = ray_jobs.protected_blocks.parquet_block
    monkeypatch.setattr(ray_jobs.protected_blocks, "parquet_block", brighter)
    with pytest.raises(DatasetError, match=r"row \d+ is \d+ levels from its clean image"):
        protect(a_job(trajectory, mixed, tmp_path / "protected"))
    assert not list((tmp_path / "protected.run").glob("blocks/*"))


def tampered(tmp_path: Path, mixed: str, **changes: object) -> str:
    """A committed dataset like ``mixed`` but for ``changes`` to its columns."""
    columns: dict[str, object] = {
        "images": [to_bytes(picture(number)) for number in range(40)],
        "labels": [number % 10 for number in range(40)],
        "index": [1000 + 7 * number for number in range(40)],
        **changes,
    }
    data = parquet_bytes(
        columns["images"], columns["labels"], class_names=NAMES, index=columns["index"]
    )
    recipe = {
        "command": "protect-data",
        "dataset": dataclasses.asdict(ImageSetConfig(source=mixed)),
    }
    location = str(tmp_path / "tampered")
    commit(
        location,
        {"data-00000.parquet": data},
        kind="dataset",
        description={"recipe": recipe, "budget": {"epsilon_levels": 6}},
    )
    return location


def moved(number: int, levels: int) -> bytes:
    pixels = np.asarray(picture(number)).astype(np.int16)
    pixels[0, 0, ...] += np.where(pixels[0, 0, ...] > 127, -levels, levels)
    return to_bytes(Image.fromarray(pixels.astype(np.uint8), picture(number).mode))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [1, *(n % 10 for n in range(1, 40))]}, "index 1000 has label 1, but .* has 0"),
        ({"index": [1007, *(1000 + 7 * n for n in range(1, 40))]}, "index 1000 is not there exact"),
        (
            {"images": [*(to_bytes(picture(n)) for n in range(39)), moved(39, 7)]},
            "index 1273 is 7 levels from its clean image; expected at most 6",
        ),
    ],
)
def test_verify_names_the_image_that_is_wrong(
    changes: dict[str, object], message: str, mixed: str, tmp_path: Path
) -> None:
    location = tampered(tmp_path, mixed, **changes)
    with pytest.raises(JobError, match=message):
        verify.run(verify.Verify(location))


def test_verify_follows_indices_in_any_order(mixed: str, tmp_path: Path) -> None:
    order = [*range(20, 40), *range(20)]
    location = tampered(
        tmp_path,
        mixed,
        images=[to_bytes(picture(n)) for n in order],
        labels=[n % 10 for n in order],
        index=[1000 + 7 * n for n in order],
    )
    found = json.loads(verify.run(verify.Verify(location)))
    assert found["num_changed"] == 0
    assert found["psnr_min"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sep": SepConfig(members=5)}, "sep.members is 5, but the trajectory has 4 checkpoints"),
        ({"sep": SepConfig(members=2, target_classes=[1, 0])}, "target_classes has 2 entries"),
        ({"only_classes": ["cat"]}, "only_classes has 'cat', of which the dataset has no image"),
        (
            {"dataset": ImageSetConfig(source="digits:train", classes=[0, 1])},
            "has the classes 0, 1",
        ),
        (
            {"cluster": GroupedClusterConfig(workers=4)},
            r"block_size is 16, which makes 3 blocks of 40 images, too few for 4 workers.*most 10",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_a_cluster_starts(
    changes: dict[str, object], message: str, mixed: str, trajectory: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        run(a_job(trajectory, mixed, tmp_path / "protected", **changes))
    assert not (tmp_path / "protected.run").exists()


def test_class_that_others_are_aligned_to_needs_an_image(trajectory: str, tmp_path: Path) -> None:
    path = tmp_path / "few.parquet"
    images = [to_bytes(picture(number)) for number in range(6)]
    path.write_bytes(parquet_bytes(images, [0, 1, 0, 1, 0, 1], class_names=NAMES))
    sep = SepConfig(members=2, steps=2, feature_alignment=True)
    job = a_job(trajectory, str(path), tmp_path / "protected", sep=sep)
    with pytest.raises(ValueError, match=r"class '5' has no image.*expected reference"):
        run(job)
    referred = dataclasses.replace(job, reference=ImageSetConfig(source="digits:train"))
    with pytest.raises(AssertionError, match="a cluster was started"):
        run(referred)


def test_a_model_without_a_trajectory_is_refused(model: str, mixed: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoints were not kept.*trajectory_checkpoints: 30"):
        run(a_job(model, mixed, tmp_path / "protected"))


def test_16_bit_images_are_refused_by_name(trajectory: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.parquet"
    deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
    images = [to_bytes(picture(0)), to_bytes(deep)]
    path.write_bytes(parquet_bytes(images, [0, 1], class_names=NAMES))
    with pytest.raises(DatasetError, match=r"deep\.parquet row 1 .*8 bits") as caught:
        protect(a_job(trajectory, str(path), tmp_path / "protected"))
    assert re.search("16", str(caught.value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": 0.0}, "share is 0.0"),
        ({"share": 1.5}, "share is 1.5"),
        ({"block_size": 0}, "block_size is 0"),
        ({"reference": ImageSetConfig(source="digits:train")}, "reference is given, but only"),
        (
            {"cluster": GroupedClusterConfig(workers=3, workers_per_group=3)},
            "workers_per_group is 3, but there are 2 members",
        ),
    ],
)
def test_bad_recipe_names_the_value(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_job("trajectory", "images", Path("output"), **changes)


def test_groups_that_workers_do_not_fill_are_refused() -> None:
    with pytest.raises(ValueError, match="workers_per_group is 2, but workers is 3"):
        GroupedClusterConfig(workers=3, workers_per_group=2)
