import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protection.batches import EpochStream, TensorImages, read_batch
from protection.tasks import Examples
from tests.conftest import random_images


@given(
    num_images=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    seed=st.integers(0, 2**16),
)
def test_stream_visits_every_image_once_an_epoch_however_it_is_cut(
    num_images: int, sizes: list[int], seed: int
) -> None:
    stream = EpochStream(num_images, seed, "key")
    position, pieces = 0, []
    for size in sizes:
        pieces.append(stream.at(position, size))
        assert len(pieces[-1]) == size  # no short batch, none dropped
        position += size
    indices = torch.cat(pieces)
    whole = len(indices) // num_images * num_images
    for epoch in indices[:whole].split(num_images) if whole else ():
        assert sorted(epoch.tolist()) == list(range(num_images))
    # Read in one piece by somebody who starts afresh: resuming changes nothing.
    assert torch.equal(EpochStream(num_images, seed, "key").at(0, position), indices)


def test_stream_orders_epochs_differently() -> None:
    first, second = EpochStream(50, 0, "key").at(0, 100).split(50)
    assert not torch.equal(first, second)


def test_batch_is_float_in_unit_range() -> None:
    images = random_images()
    batch = read_batch(images, torch.tensor([3, 1]), device=torch.device("cpu"))
    assert batch.images.dtype == torch.float32
    torch.testing.assert_close(batch.images, images.images[[3, 1]].double().div(255).float())
    assert batch.labels.tolist() == [0, 1]


def test_shards_partition_a_batch() -> None:
    inputs = torch.arange(7.0).view(7, 1, 1, 1), torch.arange(7) + 10
    shards = [Examples(inputs, torch.arange(7)).shard(i, num_shards=3) for i in range(3)]
    assert [shard.targets.tolist() for shard in shards] == [[0, 3, 6], [1, 4], [2, 5]]
    assert shards[1].inputs[0].flatten().tolist() == [1, 4]
    assert shards[1].inputs[1].tolist() == [11, 14]


def test_bad_image_sets_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images are torch.float32"):
        TensorImages(torch.rand(2, 3, 4, 4), torch.zeros(2).long(), num_classes=2)
    with pytest.raises(ValueError, match=r"shape \(3,\), but there are 2 images"):
        TensorImages(torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), num_classes=2)
    with pytest.raises(ValueError, match="num_images is 0"):
        EpochStream(0, "key")
