import copy
import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from protection.batches import Batch, TensorImages
from protection.evaluation import accuracy
from protection.models import Classifier
from protection.tasks import Examples
from protection.training import (
    NonFiniteError,
    TrainingConfig,
    crop_and_flip,
    learning_rate_at,
    start_training,
    train,
    train_step,
)
from tests.conftest import random_images, tiny_classifier

CPU = torch.device("cpu")


def a_batch(size: int = 12) -> Batch:
    images = random_images(size)
    return Batch(images.images.float() / 255, images.labels)


def test_train_step_with_one_shard_is_plain_sgd() -> None:
    model, plain = tiny_classifier(), tiny_classifier()
    batch = a_batch()
    loss = train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), batch)
    plain.train()
    expected = F.cross_entropy(plain(batch.images), batch.labels)
    expected.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    assert loss == pytest.approx(expected.item(), abs=1e-6)
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_shards_average_gradients_by_image_and_statistics_by_shard() -> None:
    model, batch = tiny_classifier(dtype=torch.float64), a_batch(11)  # 11 does not divide by 2
    start = copy.deepcopy(model)
    train_step(model, torch.optim.SGD(model.parameters(), lr=1.0), batch, num_shards=2)
    gradients, buffers = [], []
    for index in range(2):
        replica = copy.deepcopy(start).train()
        shard = Examples((batch.images,), batch.labels).shard(index, num_shards=2)
        F.cross_entropy(replica(*shard.inputs), shard.targets, reduction="sum").backward()
        gradients.append([p.grad / 11 for p in replica.parameters()])
        buffers.append(list(replica.network.norm.buffers()))
    for p, before, first, second in zip(
        model.parameters(), start.parameters(), *gradients, strict=True
    ):
        torch.testing.assert_close(p, before - first - second)
    for ours, first, second in zip(model.network.norm.buffers(), *buffers, strict=True):
        torch.testing.assert_close(ours.double(), (first.double() + second.double()) / 2)


def test_labels_that_are_probabilities_train_alike_in_shards() -> None:
    batch = a_batch()
    mixed = Batch(batch.images, torch.rand(12, 3).softmax(dim=1))
    shard = Examples((mixed.images,), mixed.labels).shard(1, num_shards=3)
    assert torch.equal(shard.inputs[0], mixed.images[1::3])
    assert torch.equal(shard.targets, mixed.labels[1::3])

    by_class, by_share = tiny_classifier(), tiny_classifier()
    shares = Batch(batch.images, F.one_hot(batch.labels, 3).float())
    losses = [
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), each, num_shards=2)
        for model, each in ((by_class, batch), (by_share, shares))
    ]
    assert losses[0] == pytest.approx(losses[1])
    for ours, theirs in zip(by_class.parameters(), by_share.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_augmentation_gets_the_model_every_batch_and_a_seed_of_its_own() -> None:
    images, config = random_images(30), TrainingConfig(epochs=2, batch_size=10)
    seen: list[tuple[int, int]] = []

    def augment(model: Classifier, batch: Batch, seed: int) -> Batch:
        assert model is state.model
        seen.append((len(batch.labels), seed))
        return Batch(torch.zeros_like(batch.images), batch.labels)

    state = start_training(tiny_classifier(), config)
    list(train(state, images, images, config=config, augment=augment))
    assert [size for size, _ in seen] == [10] * 6
    assert len({seed for _, seed in seen}) == 6
    # Trained on what came back: on black images one bias is all there is to learn.
    black = torch.zeros(1, 3, 8, 8)
    assert state.model.eval()(black).softmax(dim=1).max() < 0.5


def test_non_finite_loss_changes_nothing_and_says_where() -> None:
    model, batch = tiny_classifier(), a_batch()
    with torch.no_grad():
        model.head.bias[0] = torch.nan
    state = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match="training loss is nan"):
        train_step(model, torch.optim.SGD(model.parameters(), lr=0.1), batch)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], equal_nan=True, rtol=0, atol=0)
    images = random_images()
    config = TrainingConfig(epochs=1, batch_size=20)
    with pytest.raises(NonFiniteError, match=r"nan at epoch 0, step 0.*learning_rate is 0.1"):
        list(train(start_training(model, config), images, images, config=config))


def test_training_learns_and_resumes_bitwise() -> None:
    images, validation = random_images(60), random_images(30, seed=9)
    config = TrainingConfig(epochs=12, batch_size=20, learning_rate=0.05, random_crop_flip=True)
    whole = start_training(tiny_classifier(dropout=0.3), config)
    metrics = list(train(whole, images, validation, config=config))
    assert metrics[-1].validation_accuracy > 0.8
    assert metrics[-1].loss < metrics[0].loss

    first = start_training(tiny_classifier(dropout=0.3), config)
    epochs = train(first, images, validation, config=config)
    next(epochs), next(epochs)
    resumed = start_training(tiny_classifier(dropout=0.3), config)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    assert list(train(resumed, images, validation, config=config)) == metrics[2:]
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, whole.model.state_dict()[name]), name


def test_learning_rate_schedules() -> None:
    cosine = TrainingConfig(epochs=10, learning_rate=0.2)
    rates = [learning_rate_at(step, num_steps=5, config=cosine) for step in range(50)]
    assert max(rates) == pytest.approx(0.2)
    assert rates[:5] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] < 0.001
    stepped = TrainingConfig(epochs=10, learning_rate=0.2, milestones=[3, 6])
    rates = [learning_rate_at(step, num_steps=1, config=stepped) for step in range(10)]
    assert rates == pytest.approx([0.2] * 3 + [0.02] * 3 + [0.002] * 4)


def test_crop_and_flip_repeats_by_seed_and_leaves_the_global_generator() -> None:
    images = random_images(16).images.float()
    state = torch.get_rng_state()
    moved = crop_and_flip(images, seed=1)
    assert moved.shape == images.shape
    assert torch.equal(moved, crop_and_flip(images, seed=1))
    assert not torch.equal(moved, crop_and_flip(images, seed=2))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 24), (7, 8)])
def test_crops_are_windows_of_the_padded_image_all_as_likely_and_half_mirrored(
    height: int, width: int
) -> None:
    image = torch.arange(1.0, 2 * height * width + 1).view(2, height, width)  # every pixel differs
    up, left = height // 8, width // 8
    padded = F.pad(image, (left, left, up, up))
    windows = {}
    for top, start in itertools.product(range(2 * up + 1), range(2 * left + 1)):
        window = padded[:, top : top + height, start : start + width]
        windows[tuple(window.flatten().tolist())] = (top, start, False)
        windows[tuple(window.flip(-1).flatten().tolist())] = (top, start, True)
    crops = crop_and_flip(image.expand(6000, -1, -1, -1), seed=0)
    drawn = [windows[tuple(crop.flatten().tolist())] for crop in crops]
    counts = torch.tensor([drawn.count(each) for each in windows.values()])
    expected = 6000 / len(windows)
    # Four standard deviations: seldom missed by any of 70 counts, and the seed is fixed.
    assert (counts - expected).abs().max() < 4 * math.sqrt(expected)


def test_accuracy_counts_and_leaves_the_mode() -> None:
    model, images = tiny_classifier(dropout=0.5).train(), random_images(300)
    model.network.norm.eval()
    batch = Batch(images.images.float() / 255, images.labels)
    shown = accuracy(model, images, device=CPU)
    assert model.training
    assert not model.network.norm.training
    by_hand = copy.deepcopy(model).eval()(batch.images).argmax(-1).eq(batch.labels)
    assert shown == pytest.approx(by_hand.double().mean().item())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"learning_rate": -0.1}, "learning_rate is -0.1"),
        ({"shards": 8, "batch_size": 12}, "shards is 8, but batch_size is 12.*at most 6"),
    ],
)
def test_bad_training_config_names_the_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**change)


def test_accuracy_of_a_part_takes_images_evenly_spaced() -> None:
    images = random_images(300)
    order = images.labels.argsort()  # as a folder of class folders is read: class after class
    images = TensorImages(images.images[order], images.labels[order], num_classes=3)
    model = tiny_classifier()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0, 0.0]))  # says 1 always
    assert accuracy(model, images, device=CPU, max_images=30) == pytest.approx(1 / 3)
    assert accuracy(model, images, device=CPU, max_images=999) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="images is empty"):
        accuracy(
            model, TensorImages(images.images[:0], images.labels[:0], num_classes=3), device=CPU
        )
