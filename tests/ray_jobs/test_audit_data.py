"""An audit of protected images: what is refused before a cluster starts, and one whole audit."""

import base64
import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml
from PIL import Image

from protection.audit.countermeasures import COUNTERMEASURES
from protection.models import ModelConfig
from protection.training import TrainingConfig
from ray_jobs import audit_data
from ray_jobs.audit_data import Appropriator, AuditData, Cell
from ray_jobs.cli import parse
from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError, UsageError
from ray_jobs.image_sets import ImageSetConfig, open_set
from ray_jobs.preview import PREVIEW_PART
from ray_jobs.reports.stored import read_report
from storage.commit import commit, read_manifest, read_part
from tests.ray_jobs.conftest import TINY
from tests.storage.image_files import parquet_bytes, to_bytes

CLEAN = ImageSetConfig(source="digits:train", classes=[0, 1, 2], max_images=120)
TEST = ImageSetConfig(source="digits:test", classes=[0, 1, 2])
TRAINING = TrainingConfig(epochs=3, batch_size=16, learning_rate=0.05)


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Location of images that teach nothing, under the labels of the clean ones.

    Its manifest is as protect-data writes it.
    """
    clean = open_set(CLEAN, image_size=8)
    noise = np.random.default_rng(0).integers(0, 256, (len(clean), 8, 8, 3), dtype=np.uint8)
    images = [to_bytes(Image.fromarray(pixels)) for pixels in noise]
    location = str(tmp_path_factory.mktemp("datasets") / "protected")
    data = parquet_bytes(
        images,
        pa.array(clean.labels.tolist()),
        class_names=clean.class_names,
        index=clean.index.tolist(),
    )
    commit(
        location,
        {"images.parquet": data, PREVIEW_PART: images[0]},
        kind="dataset",
        description={
            "recipe": {"command": "protect-data", "dataset": dataclasses.asdict(CLEAN)},
            "variant": "SEP",
            "budget": {"epsilon_levels": 255},
            "num_images": 120,
            "num_protected": 120,
            "metrics": {"max_change_levels": 255, "psnr_median": 6.5, "ssim_median": 0.1},
        },
    )
    return location


def a_job(protected: str, output: Path, **changes: object) -> AuditData:
    job = AuditData(
        protected=protected,
        test=TEST,
        output=str(output / "audit"),
        appropriators=[Appropriator(model=TINY, training=TRAINING)],
        seeds=[0, 1],
        cluster=ClusterConfig(workers=3),
    )
    return dataclasses.replace(job, **changes)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_audit_compares_all_trainings_and_repeats_no_finished_cell(
    cluster: str, protected: str, tmp_path: Path
) -> None:
    countermeasures = ["none", "greyscale", "mixup"]
    # As an interrupted audit left it: one cell finished, with values no training would give.
    curve = [{"epoch": e, "loss": 1.0, "test_accuracy": a} for e, a in enumerate((0.1, 0.9876, 0))]
    kept = tmp_path / "audit.run" / "cells"
    kept.mkdir(parents=True)
    (kept / "appropriator0-clean-seed1.json").write_text(json.dumps(curve))

    location = audit_data.run(a_job(protected, tmp_path, countermeasures=countermeasures))
    report = json.loads(read_part(location, "report.json"))
    (clean,) = report["clean"].values()
    protected_cells = {cell["countermeasure"]: cell["protected"] for cell in report["cells"]}
    assert set(protected_cells) == set(countermeasures)
    trainings = [trained["curve"]["seeds"] for trained in (clean, *protected_cells.values())]
    assert [[len(rows) for rows in of_seeds] for of_seeds in trainings] == 4 * [[3, 3]]
    assert clean["curve"]["seeds"][1] == curve
    # The same seeds, and still another course each.
    assert len({str(of_seeds) for of_seeds in trainings}) == 4
    # Two dozen steps on noise leave about chance, a third; as many on digits do not.
    assert report["headline"]["peak_clean_accuracy"] > 0.8
    assert report["headline"]["peak_protected_accuracy"] < 0.7
    assert report["headline"]["chance"] == pytest.approx(1 / 3)

    manifest = read_manifest(location)
    assert manifest.kind == "data-audit"
    assert manifest.description["metrics"] == report["headline"]
    assert manifest.description["parents"] == {
        "protected": protected,
        "protected_commit": read_manifest(protected).commit_id,
        "clean": open_set(CLEAN, image_size=8).digest(),
        "test": open_set(TEST, image_size=8).digest(),
    }
    table = read_part(location, "report.md").decode()
    assert table.startswith("The worst case, tests.conftest:TinyNetwork")
    for name in countermeasures:
        assert f"\n| tests.conftest:TinyNetwork | {name} | " in table
    cells = {path.name for path in kept.iterdir()}
    assert cells == {
        f"appropriator0-{arm}-seed{seed}.json"
        for arm in ("protected", "protected-greyscale", "protected-mixup", "clean")
        for seed in (0, 1)
    }


def test_report_tells_what_the_dataset_is_and_shows_it(
    protected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_after_another(
        cells: Iterable[Cell], task: Callable[..., Any], shared: object, **_: object
    ) -> dict[Cell, Any]:
        return {cell: task(shared, cell) for cell in cells}

    monkeypatch.setattr(audit_data, "connect", lambda _: None)
    monkeypatch.setattr(audit_data, "run_cells", one_after_another)
    location = audit_data.run(a_job(protected, tmp_path, seeds=[0]))
    report = read_report(location).report
    assert report["dataset"]["variant"] == "SEP"
    assert report["dataset"]["num_protected"] == 120
    assert report["dataset"]["psnr_min"] is None  # not said
    assert report["headline"]["detectability"] > 0.9  # noise is no digit
    (cell,) = report["cells"]
    assert cell["is_clear"] is None  # of one seed
    page = read_part(location, "report.html").decode()
    preview = read_part(protected, PREVIEW_PART)
    assert f"data:image/png;base64,{base64.b64encode(preview).decode()}" in page
    assert "120 of 120 by SEP" in page


@pytest.mark.usefixtures("no_cluster")
def test_images_that_are_not_the_clean_ones_are_refused_before_anything_is_trained(
    protected: str, tmp_path: Path
) -> None:
    others = dataclasses.replace(CLEAN, classes=[0, 1, 3])
    with pytest.raises(JobError, match="is not there exactly once; expected the same indices"):
        audit_data.run(a_job(protected, tmp_path, clean=others))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(_: ClusterConfig) -> None:
        raise AssertionError("a cluster was asked for")

    monkeypatch.setattr(audit_data, "connect", connect)


@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"test": dataclasses.replace(TEST, classes=[0, 1])},
            "protected has 3 classes, clean 3 and test 2; expected the same classes",
        ),
        (
            {"clean": dataclasses.replace(CLEAN, max_images=100)},
            r"protected has 120 images, but clean \(digits:train\) has 100; expected the images",
        ),
        (
            {
                "appropriators": [
                    Appropriator(model=ModelConfig(architecture="timm/resnet81", image_size=8))
                ]
            },
            "timm/resnet81.*did you mean",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_before_a_cluster_is_asked_for(
    changes: dict[str, object], message: str, protected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        audit_data.run(a_job(protected, tmp_path, **changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_cluster")
def test_a_location_that_is_no_protected_dataset_is_refused_by_what_it_is(
    model: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="is a committed model; expected the location of a data"):
        audit_data.run(a_job(model, tmp_path))
    other = str(tmp_path / "other")
    commit(other, {}, kind="dataset", description={})
    with pytest.raises(UsageError, match=r"was not made by protect-data.*expected clean in the"):
        audit_data.run(a_job(other, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"appropriators": []}, "appropriators is empty"),
        ({"seeds": [1, 1]}, r"seeds is \[1, 1\]"),
        ({"countermeasures": []}, r"countermeasures is \[\]; expected different names"),
        ({"countermeasures": ["none", "none"]}, r"countermeasures is \['none', 'none'\]"),
        (
            {"countermeasures": ["none", "jpeg_11"]},
            "countermeasures has 'jpeg_11', which names none; expected some of "
            f"{', '.join(COUNTERMEASURES)}",
        ),
    ],
)
def test_an_audit_that_would_measure_nothing_is_refused(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        a_job("anywhere", Path("anywhere"), **changes)


def test_appropriators_of_one_architecture_are_told_apart() -> None:
    gentle = dataclasses.replace(TRAINING, learning_rate=0.001)
    job = a_job(
        "anywhere",
        Path("anywhere"),
        appropriators=[
            Appropriator(model=TINY, training=TRAINING),
            Appropriator(model=TINY, training=gentle),
            Appropriator(model=ModelConfig(architecture="timm/resnet18", image_size=8)),
        ],
    )
    assert audit_data._names(job) == [
        "appropriator 0: tests.conftest:TinyNetwork",
        "appropriator 1: tests.conftest:TinyNetwork",
        "timm/resnet18",
    ]


def test_every_countermeasure_is_named_where_recipes_are_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["audit-data", "--help"])
    explained = set(re.findall(r"\w+", capsys.readouterr().out))
    assert explained >= set(COUNTERMEASURES)


def test_cells_without_a_countermeasure_keep_their_names_and_clean_images_need_none() -> None:
    countermeasures = ["jpeg_10", "none"]
    job = a_job("anywhere", Path("anywhere"), countermeasures=countermeasures, seeds=[4])
    assert [cell.key() for cell in audit_data._cells(job)] == [
        "appropriator0-clean-seed4",
        "appropriator0-protected-jpeg_10-seed4",
        "appropriator0-protected-seed4",
    ]


def test_recipe_is_read_from_yaml(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    model = {"architecture": "timm/resnet18", "image_size": 32}
    recipe = {
        "protected": "runs/protected",
        "test": {"source": "digits:test"},
        "output": "runs/audit",
        "appropriators": [{"model": model, "training": {"epochs": 7}}, {"model": model}],
    }
    path.write_text(yaml.safe_dump(recipe))
    name, job = parse(["audit-data", "--config", str(path), "--cluster.workers", "2"])
    assert (name, job.clean, job.cluster.workers) == ("audit-data", None, 2)
    assert job.countermeasures == ["none"]
    assert [each.training.epochs for each in job.appropriators] == [7, 120]
    assert job.appropriators[0].model == ModelConfig(**model)
