"""Weights and shards on S3, kept on this machine: how often S3 is asked, and what goes wrong."""

import gc
import logging
import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from storage.blobs import open_blobs
from storage.cache import read_cached_part
from storage.checkpoints import WEIGHTS_NAME, read_weights, tensors_to_bytes
from storage.commit import commit, read_manifest
from storage.datasets import open_dataset
from storage.errors import BlobMissingError, DigestMismatchError, NotCommittedError
from storage.location import Location
from tests.storage.image_files import parquet_bytes, picture, pixels_of, pngs
from tests.storage.s3_requests import downloads, recorded_requests

PROCESSES = multiprocessing.get_context("fork")  # `spawn` would load torch in each of them
WEIGHTS = {"weight": torch.arange(12.0).view(3, 4), "steps": torch.tensor(7)}
SHARDS = {f"data-{n}.parquet": parquet_bytes(pngs(3 + n)[n:], [0, 1, 0]) for n in range(2)}

pytestmark = pytest.mark.s3


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "parts"
    monkeypatch.setenv("RINGFENCE_CACHE", str(folder))
    return folder


@pytest.fixture
def model(s3_location: Location) -> Location:
    parts = {WEIGHTS_NAME: tensors_to_bytes(WEIGHTS), "empty": b""}
    commit(s3_location / "model", parts, kind="model", description={})
    return s3_location / "model"


@pytest.fixture
def dataset(s3_location: Location) -> Location:
    commit(s3_location / "images", SHARDS, kind="dataset", description={})
    return s3_location / "images"


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("storage") and record.levelno >= logging.WARNING
    ]


def path_of(location: Location, name: str) -> str:
    return read_manifest(location).parts[name].path


def sha256_of(location: Location, name: str) -> str:
    return read_manifest(location).parts[name].sha256


def is_read(location: Location) -> bool:
    weights = read_weights(str(location))
    return all(torch.equal(weights[name], WEIGHTS[name]) for name in WEIGHTS)


def pixels(location: Location) -> torch.Tensor:
    return open_dataset(str(location), image_size=4).read(range(6))


def expected_pixels() -> torch.Tensor:
    pictures = [picture(number + n) for n in range(2) for number in range(3)]
    return torch.from_numpy(np.stack([pixels_of(image) for image in pictures]))


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_weights_are_downloaded_once(model: Location, cache: Path) -> None:
    with recorded_requests() as requests:
        assert is_read(model)
        assert is_read(model)
    assert downloads(requests).count(path_of(model, WEIGHTS_NAME)) == 1
    assert (cache / sha256_of(model, WEIGHTS_NAME)).is_file()
    assert read_cached_part(model, "empty") == read_cached_part(model, "empty") == b""


def test_shards_are_downloaded_once_and_whole(dataset: Location) -> None:
    with recorded_requests() as requests:
        for _ in range(2):
            assert torch.equal(pixels(dataset), expected_pixels())
    paths = sorted(path_of(dataset, name) for name in SHARDS)
    assert sorted(set(downloads(requests)) - {"MANIFEST.json"}) == paths
    assert len([name for name in downloads(requests) if name in paths]) == len(paths)


def test_workers_of_one_machine_download_each_part_once(model: Location, dataset: Location) -> None:
    num_processes = 3
    start = PROCESSES.Barrier(num_processes)

    def work() -> None:
        start.wait()
        assert is_read(model)
        assert torch.equal(pixels(dataset), expected_pixels())

    with recorded_requests() as requests:
        workers = [PROCESSES.Process(target=work) for _ in range(num_processes)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(40)
            assert worker.exitcode == 0
    names = downloads(requests)
    for location, name in [(model, WEIGHTS_NAME), *((dataset, name) for name in SHARDS)]:
        assert names.count(path_of(location, name)) == 1


def test_byte_flipped_on_the_cache_disk_is_noticed(
    model: Location, dataset: Location, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert is_read(model)
    assert torch.equal(pixels(dataset), expected_pixels())
    for location, name in ((model, WEIGHTS_NAME), (dataset, "data-1.parquet")):
        flip_a_byte(cache / sha256_of(location, name))
    with recorded_requests() as requests:
        assert is_read(model)
        assert torch.equal(pixels(dataset), expected_pixels())
    assert len([name for name in downloads(requests) if name != "MANIFEST.json"]) == 2
    assert (
        len([text for text in warnings(caplog) if "does not have its digest any more" in text]) == 2
    )


def test_byte_flipped_in_the_store_is_refused_and_not_kept(
    model: Location, dataset: Location, cache: Path
) -> None:
    for location, name in ((model, WEIGHTS_NAME), (dataset, "data-1.parquet")):
        path = path_of(location, name)
        data = bytearray(open_blobs(location).get(path))
        data[len(data) // 2] ^= 1
        open_blobs(location).put(path, bytes(data))
        with pytest.raises(DigestMismatchError, match=path):
            read_weights(str(location)) if location == model else pixels(location)
        assert not (cache / sha256_of(location, name)).exists()


def test_local_parts_are_read_where_they_are(tmp_path_location: Location, cache: Path) -> None:
    parts = {WEIGHTS_NAME: tensors_to_bytes(WEIGHTS)}
    commit(tmp_path_location / "model", parts, kind="model", description={})
    commit(tmp_path_location / "images", SHARDS, kind="dataset", description={})
    assert is_read(tmp_path_location / "model")
    assert torch.equal(pixels(tmp_path_location / "images"), expected_pixels())
    assert not cache.exists()


def read_twice(model: Location, dataset: Location) -> None:
    for _ in range(2):
        assert is_read(model)
        assert torch.equal(pixels(dataset), expected_pixels())


@pytest.mark.parametrize("folder", ["/dev/null/parts", "{tmp_path}/file"])
def test_unusable_folder_is_done_without_after_one_warning(
    model: Location, dataset: Location, tmp_path: Path, folder: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    folder = folder.format(tmp_path=tmp_path)
    monkeypatch.setenv("RINGFENCE_CACHE", folder)
    read_twice(model, dataset)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{folder} cannot be used (")
    assert "set RINGFENCE_CACHE and RINGFENCE_CACHE_BYTES" in warning


def test_full_disk_is_done_without_after_one_warning(
    model: Location, dataset: Location, cache: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        read_twice(model, dataset)
    (warning,) = warnings(caplog)
    assert warning.startswith(f"{cache} cannot be used (No space left on device)")
    assert not [file for file in cache.iterdir() if file.name != "lock"]


def test_weights_too_large_for_the_cache_are_read_without_it(
    model: Location, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RINGFENCE_CACHE_BYTES", "10")
    assert is_read(model)
    assert is_read(model)
    (warning,) = warnings(caplog)
    num_bytes = len(tensors_to_bytes(WEIGHTS))
    assert warning.startswith(f"{cache} cannot be used (no room for {num_bytes} bytes in 10)")


def test_no_bytes_are_no_cache(
    model: Location, dataset: Location, cache: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("RINGFENCE_CACHE_BYTES", "0")
    read_twice(model, dataset)
    assert not cache.exists()
    assert not warnings(caplog)


def test_dataset_larger_than_the_cache_is_checked_and_read_in_pieces(
    dataset: Location,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    room_bytes = sum(len(data) for data in SHARDS.values()) - 1
    monkeypatch.setenv("RINGFENCE_CACHE_BYTES", str(room_bytes))
    assert torch.equal(pixels(dataset), expected_pixels())
    assert not warnings(caplog)
    assert [file.name for file in cache.iterdir()] == ["lock"]
    path = path_of(dataset, "data-1.parquet")
    open_blobs(dataset).put(path, b"PAR1" * 100)
    with pytest.raises(DigestMismatchError, match=path):
        pixels(dataset)


def test_shards_in_use_are_not_crowded_out(
    model: Location, dataset: Location, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_bytes = sum(len(data) for data in SHARDS.values())
    monkeypatch.setenv("RINGFENCE_CACHE_BYTES", str(room_bytes))
    images = open_dataset(str(dataset), image_size=4, cache_bytes=0)
    assert is_read(model)  # finds no room
    with recorded_requests() as requests:
        assert torch.equal(images.read(range(6)), expected_pixels())
    assert not requests
    del images
    gc.collect()
    assert is_read(model)
    assert (cache / sha256_of(model, WEIGHTS_NAME)).exists()


def test_deleted_cache_is_filled_again(dataset: Location, cache: Path) -> None:
    images = open_dataset(str(dataset), image_size=4, cache_bytes=0)
    shutil.rmtree(cache)
    assert torch.equal(images.read(range(6)), expected_pixels())
    assert (cache / sha256_of(dataset, "data-0.parquet")).exists()


def test_what_is_not_there_is_said_as_without_a_cache(model: Location) -> None:
    with pytest.raises(NotCommittedError, match="is a model without a part 'modl'"):
        read_cached_part(model, "modl")
    with pytest.raises(NotCommittedError, match=r"has no MANIFEST\.json"):
        read_cached_part(model / "elsewhere", WEIGHTS_NAME)
    path = path_of(model, WEIGHTS_NAME)
    open_blobs(model).delete(path)
    with pytest.raises(BlobMissingError, match=path):
        read_cached_part(model, WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("RINGFENCE_CACHE", "parts", "RINGFENCE_CACHE is 'parts'.*expected an absolute path"),
        ("RINGFENCE_CACHE", "s3://b/parts", "RINGFENCE_CACHE is 's3://b/parts'"),
        ("RINGFENCE_CACHE_BYTES", "20GB", "RINGFENCE_CACHE_BYTES is '20GB', which is no number"),
        ("RINGFENCE_CACHE_BYTES", "-1", "RINGFENCE_CACHE_BYTES is '-1'.*or 0 for no cache"),
    ],
)
def test_environment_that_describes_no_cache_is_refused(
    model: Location, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=message):
        read_weights(str(model))
