"""The second main job on a real cluster: the same bytes from any workers, through kills."""

import dataclasses
import io
import json
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from PIL import Image

from protection.sep.config import SepConfig
from ray_jobs import verify
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.image_sets import ImageSetConfig
from ray_jobs.protect_data import ProtectData, run, train_loop_per_worker
from storage.blobs import open_blobs
from storage.commit import read_manifest, read_part
from storage.location import Location
from storage.manifest import Part
from tests.ray_jobs.conftest import ROOT, run_here

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

# Everything that could tell one worker from two: features, random inner members, a block that is
# not full. Long enough to be killed in the middle.
SEP = SepConfig(
    epsilon_levels=8,
    steps=20,
    members=3,
    feature_alignment=True,
    variance_reduction=True,
    inner_steps=4,
    batch_size=32,
)
IMAGES, BLOCKS = 850, 14


def a_job(trajectory: str, output: str, *, workers: int, group: int = 1) -> ProtectData:
    return ProtectData(
        dataset=ImageSetConfig(source="digits:train", max_images=IMAGES),
        trajectory=trajectory,
        output=output,
        sep=SEP,
        block_size=64,
        cluster=GroupedClusterConfig(workers=workers, workers_per_group=group),
    )


def parts(output: Path | Location) -> dict[str, Part]:
    return read_manifest(str(output)).parts


def notes(output: Path) -> dict[str, float]:
    """When each finished block was noted."""
    folder = output.parent / f"{output.name}.run" / "blocks"
    return {path.name: path.stat().st_mtime for path in folder.glob("*.json")}


def wait_for_blocks(output: Path, count: int) -> dict[str, float]:
    deadline = time.monotonic() + 300
    while len(found := notes(output)) < count:
        assert time.monotonic() < deadline, f"{count} blocks were never finished"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def undisturbed(trajectory: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes without a cluster."""
    output = tmp_path_factory.mktemp("undisturbed") / "protected"
    job = a_job(trajectory, str(output), workers=1)
    return run_here(job, train_loop_per_worker, verb="protect-data")


def test_manifest_says_how_the_images_were_protected(undisturbed: Path, trajectory: str) -> None:
    description = read_manifest(str(undisturbed)).description
    assert description["recipe"]["command"] == "protect-data"
    assert description["variant"] == "SEP-FA-VR"
    assert description["num_images"] == description["num_protected"] == IMAGES
    assert description["metrics"]["max_change_levels"] == 8
    assert description["parents"]["trajectory"] == trajectory
    names = [f"data-{number:05d}.parquet" for number in range(BLOCKS)]
    assert sorted(parts(undisturbed)) == [*names, "preview.png"]
    with Image.open(io.BytesIO(read_part(str(undisturbed), "preview.png"))) as preview:
        assert preview.size == (96 + 10 * 116, 3 * 116)  # ten classes, three rows


def test_verify_proves_the_budget_from_what_is_stored(undisturbed: Path) -> None:
    found = json.loads(verify.run(verify.Verify(str(undisturbed))))
    assert found["num_images"] == IMAGES
    assert found["max_change_levels"] == found["epsilon_levels"] == 8
    claimed = read_manifest(str(undisturbed)).description["metrics"]
    for name in ("psnr_min", "psnr_median", "ssim_min", "ssim_median"):
        assert found[name] == pytest.approx(claimed[name])


def test_pandas_and_ray_data_read_it(cluster: str, undisturbed: Path) -> None:
    import pandas
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = sorted(map(str, undisturbed.glob("data-*.parquet")))
    frame = pandas.read_parquet(paths[0])
    rows = ray.data.read_parquet(paths[0]).take_all()
    rows.sort(key=operator.itemgetter("index"))  # Ray Data gives them as they come
    indices = frame["index"].tolist()  # of the images among all of the source's
    assert [row["index"] for row in rows] == indices == sorted(set(indices))
    assert len(indices) == 64
    for row, image in zip(rows, frame["image"], strict=True):
        assert row["image"]["bytes"] == image["bytes"]
        with Image.open(io.BytesIO(image["bytes"])) as opened:
            assert (opened.mode, opened.size) == ("L", (8, 8))


@pytest.mark.s3
def test_bytes_do_not_depend_on_groups_or_on_the_store(
    cluster: str,
    undisturbed: Path,
    trajectory: str,
    s3_location: Location,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # logs of a run on S3 are kept in the working directory
    output = s3_location / "protected"
    assert run(a_job(trajectory, str(output), workers=2, group=2)) == str(output)
    assert parts(output) == parts(undisturbed)
    assert len(open_blobs(output.sibling(".run")).list("blocks/")) == BLOCKS
    found = json.loads(verify.run(verify.Verify(str(output))))
    assert found["num_images"] == IMAGES


def test_killed_worker_of_three_loses_no_finished_block(
    cluster: str,
    undisturbed: Path,
    trajectory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Another cluster may run on this machine, and list_actors would not know which to ask.
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    from ray.util.state import list_actors

    output = tmp_path / "protected"
    before: dict[str, float] = {}

    def kill_a_worker() -> None:
        wait_for_blocks(output, 4)
        filters = [("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")]
        pid = list_actors(filters=filters, detail=True)[0].pid
        before.update(notes(output))
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    run(a_job(trajectory, str(output), workers=3))
    killer.join()
    assert 4 <= len(before) < BLOCKS
    after = notes(output)
    assert {name: after[name] for name in before} == before  # not computed again
    assert parts(output) == parts(undisturbed)


def test_killed_driver_goes_on_where_it_was_on_any_number_of_workers(
    cluster: str,
    undisturbed: Path,
    trajectory: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = tmp_path / "protected"
    recipe = tmp_path / "recipe.yaml"
    job = a_job(trajectory, str(output), workers=2)
    recipe.write_text(yaml.safe_dump(json.loads(json.dumps(dataclasses.asdict(job)))))
    command = [sys.executable, "-m", "ray_jobs.cli", "protect-data", "--config", str(recipe)]
    environment = {**os.environ, "RAY_ADDRESS": cluster, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.DEVNULL)
    before = wait_for_blocks(output, 4)
    driver.kill()
    driver.wait()
    assert not (output / "MANIFEST.json").exists()
    alone = a_job(trajectory, str(output), workers=1)
    with caplog.at_level("INFO", logger="ray_jobs"):
        run_here(alone, train_loop_per_worker, verb="protect-data")
    assert f"resuming the run in {output}.run" in caplog.text
    after = notes(output)
    assert {name: after[name] for name in before} == before
    assert parts(output) == parts(undisturbed)
