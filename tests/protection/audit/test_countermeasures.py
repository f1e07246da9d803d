"""Countermeasures one by one, and what they are for: they find a protection that does not hold."""

import functools
import io
import statistics

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from protection.audit.countermeasures import COUNTERMEASURES, PurifiedImages, appropriate
from protection.batches import Batch, TensorImages
from protection.models import Classifier
from protection.training import TrainingConfig, start_training
from tests.conftest import TinyNetwork, random_images, tiny_classifier

PURIFICATIONS = {n: each.purify for n, each in COUNTERMEASURES.items() if each.purify}
AUGMENTATIONS = {n: each.augment for n, each in COUNTERMEASURES.items() if each.augment}
ADVERSARIAL = {"adversarial_training_2": 2, "adversarial_training_4": 4}


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, shape, generator=rng).byte()


def smooth_pixels(*shape: int) -> Tensor:
    """Random images with an edge in them but little noise: a photograph more than a test card."""
    small = random_pixels(*shape[:2], 3, 3).float()
    return F.interpolate(small, size=shape[2:], mode="bicubic").clamp(0, 255).byte()


def a_batch(size: int = 12) -> Batch:
    images = random_images(size)
    return Batch(images.images.float() / 255, images.labels)


def test_every_countermeasure_is_of_one_kind() -> None:
    assert {*PURIFICATIONS, *AUGMENTATIONS, "none"} == set(COUNTERMEASURES)
    assert not {*PURIFICATIONS} & {*AUGMENTATIONS}


@pytest.mark.parametrize("shape", [(3, 3, 7, 5), (2, 1, 8, 9), (1, 3, 2, 2)])
@pytest.mark.parametrize("name", PURIFICATIONS)
def test_purification_keeps_form_treats_images_alone_and_draws_nothing(
    name: str, shape: tuple[int, ...]
) -> None:
    images, purify = random_pixels(*shape), PURIFICATIONS[name]
    before, state = images.clone(), torch.get_rng_state()
    purified = purify(images)
    assert (purified.shape, purified.dtype) == (images.shape, torch.uint8)
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    for index in range(len(images)):
        assert torch.equal(purify(images[index : index + 1])[0], purified[index])


@pytest.mark.parametrize("quality", [10, 30, 50, 70, 90])
def test_jpeg_is_what_an_encoder_and_decoder_give(quality: int) -> None:
    images = smooth_pixels(3, 3, 21, 16)
    purified = PURIFICATIONS[f"jpeg_{quality}"](images)
    for image, compressed in zip(images, purified, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        assert compressed.permute(1, 2, 0).numpy().tobytes() == Image.open(file).tobytes()


def test_jpeg_of_lower_quality_changes_more() -> None:
    images = smooth_pixels(4, 3, 32, 32)
    errors = [
        (PURIFICATIONS[f"jpeg_{quality}"](images).float() - images).abs().mean().item()
        for quality in (10, 30, 50, 70, 90)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 2 * errors[-1] > 0


def test_greyscale_gives_every_channel_the_luminance() -> None:
    images = random_pixels(4, 3, 7, 5)
    grey = PURIFICATIONS["greyscale"](images)
    red, green, blue = images.double().unbind(dim=1)
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue  # ITU-R BT.601
    for channel in grey.unbind(dim=1):
        # One level: torchvision truncates.
        torch.testing.assert_close(channel.double(), luminance, atol=1.05, rtol=0)
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])


@pytest.mark.parametrize("bits", [2, 4])
def test_bit_depth_leaves_that_many_levels_and_moves_no_value_further_than_one(bits: int) -> None:
    images = torch.arange(256).byte().view(1, 1, 16, 16)
    purified = PURIFICATIONS[f"bit_depth_{bits}"](images)
    assert len(purified.unique()) == 2**bits
    assert (images.int() - purified.int()).min() == 0
    assert (images.int() - purified.int()).max() == 256 // 2**bits - 1


def test_gaussian_blur_is_the_weighted_mean_of_a_neighbourhood() -> None:
    images = random_pixels(2, 3, 6, 5)
    weight = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).double().square() / (2 * 0.8**2))
    weight = weight / weight.sum()
    padded = F.pad(images.double(), (1, 1, 1, 1), mode="reflect")
    expected = torch.zeros(images.shape, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            expected += weight[i] * weight[j] * padded[:, :, i : i + 6, j : j + 5]
    blurred = PURIFICATIONS["gaussian_blur"](images).double()
    torch.testing.assert_close(blurred, expected, atol=0.501, rtol=0)  # rounded to a level


def test_median_blur_is_the_median_of_a_neighbourhood() -> None:
    images = random_pixels(2, 3, 6, 5)
    blurred = PURIFICATIONS["median_blur"](images)
    for b, c, y, x in torch.cartesian_prod(*(torch.arange(size) for size in images.shape)).tolist():
        values = [
            int(images[b, c, min(max(y + dy, 0), 5), min(max(x + dx, 0), 4)])
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
        ]
        assert int(blurred[b, c, y, x]) == statistics.median(values), (b, c, y, x)


def test_resize_half_removes_a_checkerboard_and_keeps_a_plain_image() -> None:
    board = 255 * ((torch.arange(8).view(-1, 1) + torch.arange(8)) % 2)
    images = torch.stack([board, torch.full((8, 8), 90)]).byte().unsqueeze(1)
    checkerboard, plain = PURIFICATIONS["resize_half"](images)
    assert torch.equal(plain, images[1])
    assert checkerboard.float().std() < 0.2 * images[0].float().std()
    # Away from the edge, where the filter has fewer pixels to average.
    assert (checkerboard[:, 2:-2, 2:-2].float() - 127.5).abs().max() < 10


def test_purified_images_are_purified_once_where_they_fit_and_always_the_same() -> None:
    images = random_images(600)  # more than two blocks
    seen: list[int] = []

    def purify(pixels: Tensor) -> Tensor:
        seen.append(len(pixels))
        return 255 - pixels

    indices = torch.tensor([599, 3, 3, 0])
    kept = PurifiedImages(images, purify)
    assert sum(seen) == 600
    assert torch.equal(kept.read(indices), 255 - images.images[indices])
    assert sum(seen) == 600
    assert (len(kept), kept.num_classes) == (600, 3)
    assert kept.labels is images.labels

    too_large = PurifiedImages(images, purify, cache_bytes=images.images.numel() - 1)
    assert sum(seen) == 600
    assert torch.equal(too_large.read(indices), kept.read(indices))
    assert sum(seen) == 604


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_repeats_by_seed_and_leaves_everything_else_as_it_was(name: str) -> None:
    augment, batch = AUGMENTATIONS[name], a_batch()
    model = tiny_classifier(dropout=0.5).train()
    model.network.norm.eval()
    before = batch.images.clone()
    model_state = {key: value.clone() for key, value in model.state_dict().items()}
    rng_state = torch.get_rng_state()

    first, again, other = (augment(model, batch, seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)

    assert (first.images.shape, first.images.dtype) == (batch.images.shape, torch.float32)
    assert not first.images.requires_grad
    assert torch.equal(batch.images, before)
    assert torch.equal(torch.get_rng_state(), rng_state)
    assert (model.training, model.network.norm.training) == (True, False)
    assert all(parameter.grad is None for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, model_state[key]), key


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_labels_are_the_shares_of_what_is_in_the_image(name: str) -> None:
    # Class 0 is black and class 1 is white, so that an image's mean is its share of class 1.
    labels = torch.tensor([0, 1, 1, 0, 1, 0])
    images = labels.float().view(-1, 1, 1, 1).expand(6, 3, 16, 16)
    mixed = AUGMENTATIONS[name](tiny_classifier(), Batch(images, labels), 3)
    assert mixed.labels.shape == (6, 3)
    torch.testing.assert_close(mixed.labels.sum(dim=1), torch.ones(6))
    torch.testing.assert_close(mixed.labels[:, 1], mixed.images.mean(dim=(1, 2, 3)))
    assert not mixed.labels[:, 2].any()
    assert 0 < mixed.labels[1, 1] <= 1


def test_cutout_takes_a_square_at_a_place_of_each_images_own() -> None:
    images = torch.full((200, 3, 9, 12), 2.0)
    model = tiny_classifier()
    cut = COUNTERMEASURES["cutout"].augment(model, Batch(images, torch.zeros(200)), 0).images
    is_cut = cut[:, 0] != 2
    mean_colour = model.pixel_mean.expand_as(cut)
    torch.testing.assert_close(cut, torch.where(is_cut.unsqueeze(1), mean_colour, images))
    heights, widths = is_cut.any(dim=2).sum(dim=1), is_cut.any(dim=1).sum(dim=1)
    assert torch.equal(is_cut.flatten(1).sum(dim=1), heights * widths)  # a rectangle
    assert (heights.max(), widths.max()) == (5, 5)
    assert heights.min() < 5  # overhangs the edge
    assert is_cut.any(dim=0).all()
    assert not is_cut.all(dim=0).any()


def test_randaugment_gives_levels_and_changes_images_each_in_its_own_way() -> None:
    batch = a_batch(1)
    batch = Batch(batch.images.repeat(40, 1, 1, 1), batch.labels.repeat(40))
    images = COUNTERMEASURES["randaugment"].augment(tiny_classifier(), batch, 0).images
    assert 0 <= images.min() <= images.max() <= 1
    torch.testing.assert_close((images * 255).round() / 255, images)
    assert len(images.flatten(1).unique(dim=0)) > 10


@pytest.mark.parametrize(("name", "epsilon_levels"), ADVERSARIAL.items())
def test_adversarial_training_raises_the_loss_within_its_budget(
    name: str, epsilon_levels: int
) -> None:
    model, batch = tiny_classifier(), a_batch(60)
    moved = AUGMENTATIONS[name](model, batch, 0)
    # One rounding of a float32 pixel near 1.
    assert (moved.images - batch.images).abs().max() <= epsilon_levels / 255 + 1e-7
    assert 0 <= moved.images.min() <= moved.images.max() <= 1
    assert torch.equal(moved.labels, batch.labels)

    def losses(images: Tensor) -> Tensor:
        return F.cross_entropy(model.eval()(images), batch.labels, reduction="none")

    rng = torch.Generator().manual_seed(0)
    signs = torch.randint(2, batch.images.shape, generator=rng) * 2 - 1
    as_far_at_random = (batch.images + epsilon_levels / 255 * signs).clamp(0, 1)
    gain = losses(moved.images) - losses(batch.images)
    assert (gain > 0).all()
    assert gain.mean() > 3 * (losses(as_far_at_random) - losses(batch.images)).mean().abs()


@pytest.mark.parametrize("name", COUNTERMEASURES)
def test_training_under_a_countermeasure_repeats_bit_for_bit(name: str) -> None:
    images, test = random_images(40), random_images(20, seed=9)
    config = TrainingConfig(epochs=2, batch_size=16, random_crop_flip=True, shards=2, seed=5)

    def run(countermeasure: str, config: TrainingConfig = config) -> dict[str, Tensor]:
        state = start_training(tiny_classifier(dropout=0.3), config)
        list(appropriate(state, images, test, config=config, countermeasure=countermeasure))
        return state.model.state_dict()

    first, again, without = run(name), run(name), run("none")
    assert all(torch.equal(first[key], again[key]) for key in first)
    is_different = any(not torch.equal(first[key], without[key]) for key in first)
    assert is_different == (name != "none")


# Colours of one luminance, 40 levels strong: greyscale makes them one grey, to a level.
HUES = 40 * torch.tensor(
    [[1, -0.299 / 0.587, 0], [0, -0.114 / 0.587, 1], [-1, (0.299 + 0.114) / 0.587, -1]]
)


@functools.cache
def digits_on_paper(*, hue_shift: int) -> tuple[TensorImages, TensorImages]:
    """Faint digits on paper of a colour: training images, test images.

    Every class has its own colour. In training images it is that of the class ``hue_shift`` further
    on: a constant offset, the same for all images of a class.
    """
    digits = load_digits(n_class=3)
    labels = torch.from_numpy(digits.target).long()
    grey = 80 + 6 * torch.from_numpy(digits.images).float()  # 80 to 176 of 255
    parity = torch.arange(len(labels)) % 2 == 0

    def coloured(chosen: Tensor, shift: int) -> TensorImages:
        colours = HUES[(labels[chosen] + shift) % 3].view(-1, 3, 1, 1)
        pixels = (grey[chosen].unsqueeze(1) + colours).round().byte()
        return TensorImages(pixels, labels[chosen], num_classes=3)

    return coloured(parity, hue_shift), coloured(~parity, 0)


def peak_accuracy(countermeasure: str, *, hue_shift: int) -> float:
    """What a tiny network reaches on test images in four epochs."""
    images, test = digits_on_paper(hue_shift=hue_shift)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(TinyNetwork(3), num_classes=3)
    config = TrainingConfig(epochs=4, batch_size=32, learning_rate=0.02)
    epochs = appropriate(
        start_training(model, config), images, test, config=config, countermeasure=countermeasure
    )
    return max(metrics.validation_accuracy for metrics in epochs)


def test_a_protection_by_colour_holds_until_greyscale_is_tried() -> None:
    assert peak_accuracy("none", hue_shift=0) > 0.95  # measured 1.00; chance is 0.33
    # The shifted colour teaches that each class is another one.
    assert peak_accuracy("none", hue_shift=1) < 0.2  # measured 0.05
    assert peak_accuracy("gaussian_blur", hue_shift=1) < 0.2  # measured 0.00
    assert peak_accuracy("adversarial_training_4", hue_shift=1) < 0.2  # measured 0.03
    assert peak_accuracy("greyscale", hue_shift=1) > 0.85  # measured 0.95
