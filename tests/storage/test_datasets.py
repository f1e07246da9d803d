from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from storage.blobs import open_blobs
from storage.datasets import open_dataset, validation_split
from storage.errors import DatasetError
from storage.image_dataset import ImageDataset
from storage.location import Location
from tests.storage.image_files import parquet_bytes, pngs

LABELS = [0, 1, 2, 0, 1, 2, 0, 0, 0, 0]
NAMES = ["ant", "bee", "cat"]
REAL_DATA = Path(__file__).parents[3] / "shared" / "data" / "cifar10-train.parquet"


@pytest.fixture
def file(tmp_path: Path) -> str:
    (tmp_path / "ants.parquet").write_bytes(parquet_bytes(pngs(10), LABELS, class_names=NAMES))
    return str(tmp_path / "ants.parquet")


@pytest.fixture
def dataset(file: str) -> ImageDataset:
    return open_dataset(file, image_size=4)


def test_items_are_images_and_labels(dataset: ImageDataset) -> None:
    assert (len(dataset), dataset.num_classes, dataset.class_names) == (10, 3, NAMES)
    batch = dataset.read(torch.arange(10))
    assert (batch.shape, batch.dtype) == ((10, 3, 4, 4), torch.uint8)
    assert dataset.labels.dtype == torch.int64
    for number, (image, label) in enumerate(dataset):  # ends by IndexError, as sequences do
        assert torch.equal(image, batch[number])
        assert label == LABELS[number]
    assert torch.equal(dataset[-1][0], batch[9])
    assert dataset.read([]).shape == (0, 3, 4, 4)


def test_batch_is_the_callers_own(dataset: ImageDataset) -> None:
    before = dataset.read([3]).clone()
    dataset.read([3]).zero_()
    assert torch.equal(dataset.read([3]), before)


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 10], IndexError, "index is 10, and there are 10 images; expected -10 <= index < 10"),
        ([-11], IndexError, "index is -11"),
        ([0.5], ValueError, "dtype torch.float32; expected one dimension of integers"),
        ([True, False], ValueError, "dtype torch.bool"),
        ([[0], [1]], ValueError, r"shape \(2, 1\)"),
    ],
)
def test_wrong_index_is_refused(
    dataset: ImageDataset, indices: list[int], error: type[Exception], message: str
) -> None:
    readers = (dataset.read, dataset.originals, dataset.columns, dataset.paths)
    for call in (*readers, dataset.subset, dataset.prefetch):
        with pytest.raises(error, match=message):
            call(indices)


@pytest.mark.parametrize("classes", [["cat", "ant"], [2, 0], ["cat", 0]])
def test_classes_are_kept_in_the_order_given(file: str, classes: list[int | str]) -> None:
    dataset = open_dataset(file, image_size=4, classes=classes)
    assert dataset.class_names == ["cat", "ant"]
    assert dataset.rows.tolist() == [0, 2, 3, 5, 6, 7, 8, 9]
    assert dataset.labels.tolist() == [1, 0, 1, 0, 1, 1, 1, 1]
    whole = open_dataset(file, image_size=4)
    assert torch.equal(dataset.read(range(8)), whole.read(dataset.rows))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"classes": ["cat", "cow"]}, DatasetError, r"class 'cow' .*0 \(ant\), 1 \(bee\), 2 \(c"),
        ({"classes": [0, -1]}, DatasetError, "class -1 has no image"),
        ({"classes": ["cat"]}, DatasetError, "one class only, 'cat'"),
        ({"classes": []}, ValueError, r"classes is \[\]"),
        ({"classes": "cat"}, ValueError, "classes is 'cat'; expected a list"),
        ({"classes": ["ant", 0]}, ValueError, r"classes is \['ant', 0\], which repeats one"),
        ({"image_size": 0}, ValueError, "image_size is 0"),
        ({"max_images": 1}, ValueError, "max_images is 1; expected at least 2"),
        ({"max_images": 2}, ValueError, "max_images is 2, too few .* 3 classes"),
        ({"cache_bytes": -1}, ValueError, "cache_bytes is -1"),
    ],
)
def test_wrong_argument_is_refused(
    file: str, arguments: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        open_dataset(file, **({"image_size": 4} | arguments))  # type: ignore[arg-type]


def test_draw_is_even_over_classes_and_repeats(file: str) -> None:
    draws = {n: open_dataset(file, image_size=4, max_images=n) for n in (3, 6, 8, 100)}
    assert draws[3].labels.bincount().tolist() == [1, 1, 1]
    assert draws[6].labels.bincount().tolist() == [2, 2, 2]
    assert draws[8].labels.bincount().tolist() == [4, 2, 2]  # the others have only two
    assert len(draws[100]) == 10
    assert set(draws[3].rows.tolist()) < set(draws[6].rows.tolist())
    again = open_dataset(file, image_size=4, max_images=6)
    assert torch.equal(again.rows, draws[6].rows)
    others = {
        tuple(open_dataset(file, image_size=4, max_images=3, seed=s).rows.tolist())
        for s in range(9)
    }
    assert len(others) > 1


def test_subset_is_a_view_in_the_order_given(dataset: ImageDataset) -> None:
    view = dataset.subset([7, 2, 2]).subset(torch.tensor([1, 0, -1]))
    assert view.rows.tolist() == [2, 7, 2]
    assert view.labels.tolist() == [2, 0, 2]
    assert view.class_names == NAMES
    assert torch.equal(view.read([0, 1, 2]), dataset.read([2, 7, 2]))
    assert len(dataset) == 10


def test_subset_shares_what_was_decoded(tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png"):
        open_blobs(tmp_path).put(name, pngs(1)[0])
    dataset = open_dataset(tmp_path, image_size=4)
    expected = dataset.subset([1]).read([0])
    (tmp_path / "b" / "1.png").unlink()
    assert torch.equal(dataset.read([1]), expected)


def test_originals_are_those_of_a_subset(dataset: ImageDataset) -> None:
    view = dataset.subset([7, 2])
    assert torch.equal(torch.stack(view.originals([1, 0])), dataset.read([2, 7]))
    first, again = view.originals([0, 0])
    first.zero_()
    assert torch.equal(again, dataset.read([7])[0])
    assert dataset.originals([]) == dataset.paths([]) == []


def test_repeated_index_is_refused_by_number(tmp_path: Path, dataset: ImageDataset) -> None:
    dataset.require_unique_index()
    data = parquet_bytes(pngs(6), [0, 1, 0, 1, 0, 1], index=[8, -5, 3, 2, 3, -5])
    (tmp_path / "repeats.parquet").write_bytes(data)
    repeats = open_dataset(tmp_path / "repeats.parquet", image_size=4)
    repeats.subset([0, 1, 2, 3]).require_unique_index()
    message = "index of image 4 is 3, which image 2 has too, .*; expected different numbers"
    with pytest.raises(DatasetError, match=message):
        repeats.require_unique_index()


def test_digest_depends_on_images_and_labels_alone(tmp_path: Path) -> None:
    images, labels = pngs(6), [0, 1, 0, 1, 0, 1]

    def digest(name: str, data: list[bytes], image_size: int = 4, **changes: object) -> str:
        (tmp_path / name).write_bytes(parquet_bytes(data, **({"labels": labels} | changes)))
        return open_dataset(tmp_path / name, image_size=image_size).digest()

    reference = digest("a.parquet", images)
    assert len(bytes.fromhex(reference)) == 32
    assert digest("b.parquet", images, 8, rows_per_group=1, is_plain=True) == reference
    assert digest("c.parquet", images[::-1]) != reference
    assert digest("d.parquet", images, labels=[1, 1, 0, 1, 0, 1]) != reference
    assert digest("e.parquet", images, class_names=["x", "y"]) != reference
    whole = open_dataset(tmp_path / "a.parquet", image_size=4)
    assert whole.subset([0, 1]).digest() != reference
    assert whole.subset(range(6)).digest() == reference


@given(
    num_images=st.integers(2, 300),
    share=st.floats(0, 1, exclude_min=True, exclude_max=True),
    seed=st.integers(0, 2**32),
)
def test_validation_split_is_complete_disjoint_and_sorted(
    num_images: int, share: float, seed: int
) -> None:
    train, validation = validation_split(num_images, share=share, seed=seed)
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(num_images))
    assert train.tolist() == sorted(train.tolist())
    assert validation.tolist() == sorted(validation.tolist())
    assert min(len(train), len(validation)) >= 1
    # One for rounding to whole images, one for the image that each side always gets.
    assert abs(len(validation) - num_images * share) <= 1
    assert torch.equal(validation_split(num_images, share=share, seed=seed)[0], train)


@pytest.mark.parametrize(
    ("num_images", "share", "message"),
    [
        (1, 0.5, "num_images is 1, too few to split"),
        (10, 0.0, r"share is 0\.0"),
        (10, 1.0, r"share is 1\.0, which leaves one side empty"),
        (10, float("nan"), "share is nan"),
    ],
)
def test_split_with_an_empty_side_is_refused(num_images: int, share: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        validation_split(num_images, share=share, seed=0)


def test_missing_source_is_answered_with_what_is_near(file: str) -> None:
    for source, hint in (
        (file.replace("ants", "ant"), r"ants\.parquet"),
        ("cifar10", "torchvision/CIFAR10:train"),
        ("digits:trian", "digits:train"),
    ):
        with pytest.raises(DatasetError, match=rf"dataset is '{source}', .*did you mean .*{hint}"):
            open_dataset(source, image_size=4)
    with pytest.raises(
        DatasetError, match=r"'/no/such/thing', which does not exist; expected a Pa"
    ):
        open_dataset("/no/such/thing", image_size=4)


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.zip").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"images\.zip', which is a file of another kind"):
        open_dataset(tmp_path / "images.zip", image_size=4)


def test_pattern_without_a_match_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"\*\.parquet', which does not exist"):
        open_dataset(tmp_path / "*.parquet", image_size=4)


@pytest.mark.s3
def test_empty_prefix_is_refused(s3_location: Location) -> None:
    for location in (s3_location, s3_location / "x.parquet", s3_location / "*.parquet"):
        with pytest.raises(DatasetError, match=r"s3://tests/.*, which does not exist"):
            open_dataset(str(location), image_size=4)


def test_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"{tmp_path} has neither"):
        open_dataset(tmp_path, image_size=4)


@pytest.mark.skipif(not REAL_DATA.exists(), reason=f"needs {REAL_DATA}")
def test_real_images_are_read() -> None:
    dataset = open_dataset(REAL_DATA, image_size=32, classes=["ship", "cat"], max_images=20)
    assert dataset.labels.bincount().tolist() == [10, 10]
    assert 60 < dataset.read(range(20)).float().mean() < 180
