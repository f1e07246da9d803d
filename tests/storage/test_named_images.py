import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from storage.datasets import open_dataset
from storage.errors import DatasetError
from tests.storage.image_files import picture, to_bytes


def write_mnist(root: Path, split: str, images: np.ndarray, labels: list[int]) -> None:
    """The four files of MNIST, in the IDX format they have."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">IIII", 0x803, *images.shape)
    (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.tobytes())
    header = struct.pack(">II", 0x801, len(labels))
    (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + bytes(labels))


def test_digits_are_split_once_and_for_all() -> None:
    whole = open_dataset("digits", image_size=8)
    train = open_dataset("digits:train", image_size=8)
    test = open_dataset("digits:test", image_size=8)
    assert (len(whole), len(train), len(test)) == (1797, 1442, 355)
    for digit in range(10):
        share = (test.labels == digit).sum() / (whole.labels == digit).sum()
        assert 0.19 < share < 0.21
    encoded = sorted(whole.read(range(len(whole))).flatten(1).tolist())
    parts = torch.cat([d.read(range(len(d))) for d in (train, test)])
    assert sorted(parts.flatten(1).tolist()) == encoded


def test_digits_keep_their_grey_levels() -> None:
    dataset, original = open_dataset("digits", image_size=8), load_digits()
    pixels = dataset.read(range(len(dataset))).numpy()
    assert np.array_equal(pixels[:, 0], np.rint(original.images * 255 / 16))
    assert np.array_equal(pixels[:, 0], pixels[:, 2])
    assert torch.equal(torch.stack(dataset.originals([0, 9])), dataset.read([0, 9])[:, :1])
    assert (dataset.paths([0, 9]), dataset.columns([0, 9])) == ([None, None], None)
    assert dataset.class_names == [str(digit) for digit in range(10)]
    assert pixels.max() == 255


def test_torchvision_dataset_with_a_train_flag_is_opened(tmp_path: Path) -> None:
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28).astype(np.uint8)
    for split, labels in (("train", [7, 0, 3]), ("t10k", [1, 2, 2])):
        write_mnist(tmp_path, split, images, labels)
    train = open_dataset("torchvision/MNIST:train", image_size=28, root=str(tmp_path))
    test = open_dataset("torchvision/MNIST:test", image_size=28, root=str(tmp_path))
    assert (train.labels.tolist(), test.labels.tolist()) == ([7, 0, 3], [1, 2, 2])
    assert train.num_classes == 10
    assert np.array_equal(train.read([2])[0, 1].numpy(), images[2])
    assert train.digest() != test.digest()


def test_torchvision_dataset_with_named_splits_is_opened(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        for number, name in enumerate(["negative", "positive"]):
            folder = tmp_path / "rendered-sst2" / split / name
            folder.mkdir(parents=True)
            (folder / "1.png").write_bytes(to_bytes(picture(number)))
    dataset = open_dataset("torchvision/RenderedSST2:val", image_size=4, root=str(tmp_path))
    assert dataset.class_names == ["negative", "positive"]
    assert dataset.labels.tolist() == [0, 1]
    with pytest.raises(DatasetError, match=r"'torchvision/RenderedSST2:dev'.*ValueError"):
        open_dataset("torchvision/RenderedSST2:dev", image_size=4, root=str(tmp_path))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision/CIFAR1:test", "for example torchvision/CIFAR1?0+:test"),
        ("torchvision/CIFAR10", "names no dataset and split.*torchvision/CIFAR10:train"),
        ("torchvision/CIFAR10:val", "no split 'val'; expected train or test"),
        ("torchvision/FakeData:train", "names no dataset"),
        ("torchvision/__path__:train", "names no dataset"),
    ],
)
def test_unknown_torchvision_name_is_refused(source: str, message: str) -> None:
    with pytest.raises(DatasetError, match=f"dataset is '{source}'.*{message}"):
        open_dataset(source, image_size=4)


def test_torchvision_dataset_is_not_downloaded_unasked(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=rf"cannot open in {tmp_path}.*download=True fetches"):
        open_dataset("torchvision/CIFAR10:train", image_size=32, root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_torchvision_dataset_without_a_download_is_said(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match="'torchvision/ImageNet:val', which torchvision does not"
    ):
        open_dataset("torchvision/ImageNet:val", image_size=4, root=str(tmp_path), download=True)


@pytest.mark.parametrize("arguments", [{"download": True}, {"root": "/data"}])
def test_torchvision_arguments_are_refused_elsewhere(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"dataset is 'digits' with download .* only"):
        open_dataset("digits", image_size=8, **arguments)  # type: ignore[arg-type]


def test_photographs_share_no_pixel_between_train_and_test() -> None:
    from sklearn.datasets import load_sample_image

    train = open_dataset("photographs:train", image_size=16)
    test = open_dataset("photographs:test", image_size=16)
    assert (len(train), len(test)) == (3780, 900)
    assert train.class_names == test.class_names
    assert train.class_names[:2] == ["china 1", "china 2"]
    assert torch.bincount(train.labels).tolist() == [378] * 10
    # Patches of whole cells: what is at a cell's first offset is at the photograph's place.
    whole = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    assert torch.equal(train.read([0])[0], whole[:, :16, :16])
    seen = {tuple(image.flatten().tolist()) for image in train.read(torch.arange(378))}
    assert not any(tuple(image.flatten().tolist()) in seen for image in test.read(range(90)))
