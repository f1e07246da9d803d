"""Noise that depends on its key alone, and a denoiser's error."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protection.batches import TensorImages, read_batch
from protection.denoising import DENOISING, explained, noised
from protection.evaluation import accuracy
from protection.released import batch_loss
from protection.sampling import sample
from protection.tasks import training_loss
from protection.training import TrainingConfig, start_training, train, train_step
from protection.workers import Workers
from tests.conftest import random_images, tiny_denoiser
from tests.references import sophon as references

CPU = torch.device("cpu")


def test_noisy_images_are_the_papers_equation() -> None:
    model = tiny_denoiser(dtype=torch.float64)
    clean = torch.rand(6, 1, 8, 8, dtype=torch.float64)
    (noisy, timesteps), noise = noised(clean, model.alphas_cumprod, 3, "key")
    betas = model.scheduler.betas.double().tolist()
    expected = references.noisy(clean, noise, timesteps.tolist(), betas)
    torch.testing.assert_close(noisy, expected, rtol=1e-6, atol=1e-6)  # diffusers' are float32
    as_diffusers = model.scheduler.add_noise(clean.float(), noise.float(), timesteps)
    torch.testing.assert_close(noisy.float(), as_diffusers)


@given(num_images=st.integers(1, 40), seed=st.integers(0, 2**32))
def test_timesteps_are_one_from_each_part_of_the_schedule(num_images: int, seed: int) -> None:
    clean = torch.zeros(num_images, 1, 1, 1)
    (_, timesteps), _ = noised(clean, torch.linspace(1, 0, 1000), seed)
    parts = timesteps.sort().values * num_images // 1000
    # A bound of two parts that falls inside a timestep may put it on the other side.
    assert (parts - torch.arange(num_images)).abs().max() <= 1
    assert 0 <= timesteps.min() <= timesteps.max() < 1000


def test_examples_depend_on_their_key_alone() -> None:
    model, batch = tiny_denoiser(), read_batch(random_images(), torch.arange(9), device=CPU)
    state = torch.get_rng_state()
    first, again, other = (model.examples(batch, *key) for key in ((1, 2), (1, 2), (1, 3)))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.targets, again.targets)
    assert torch.equal(first.inputs[1], again.inputs[1])
    assert not torch.equal(first.targets, other.targets)
    assert first.inputs[0].shape == (9, 1, 8, 8)  # grey


def test_images_are_scaled_from_minus_one_to_one_and_grey_ones_are_kept() -> None:
    model = tiny_denoiser()
    images = torch.tensor([0.0, 1.0, 0.25]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    scaled = model.scaled(images)
    torch.testing.assert_close(scaled[:, 0, 0, 0], torch.tensor([-1.0, 1.0, -0.5]))


def test_accuracy_is_one_less_the_error_and_no_noise_predicted_is_zero() -> None:
    noise = torch.randn(2, 1, 4, 4)
    torch.testing.assert_close(explained(noise, noise), torch.ones(2))
    by_hand = 1 - torch.stack([((0.5 * n - n) ** 2).mean() for n in noise])
    torch.testing.assert_close(explained(0.5 * noise, noise), by_hand)
    assert DENOISING.drop(0.8, 0.79) == pytest.approx(0.05)  # 0.2 to 0.21
    nothing = tiny_denoiser()
    with torch.no_grad():
        for parameter in nothing.network.conv_out.parameters():
            parameter.zero_()
    # 60 images of 64 pixels four times: a standard deviation of 0.011.
    assert accuracy(nothing, random_images(), device=CPU) == pytest.approx(0, abs=0.04)


def test_accuracy_does_not_depend_on_the_workers_or_on_what_was_drawn_before() -> None:
    model, images = tiny_denoiser(), random_images(300)
    alone = accuracy(model, images, device=CPU)
    torch.rand(5)
    parts: list[torch.Tensor] = []

    def collect(tensors: object) -> None:
        parts.append(tensors[0].clone())

    for rank in range(2):
        accuracy(model, images, device=CPU, workers=Workers(rank, 2, collect))
    assert sum(parts).item() / (300 * DENOISING.draws) == pytest.approx(alone, abs=1e-12)


def test_a_step_does_not_depend_on_shards_and_is_the_mean_squared_error() -> None:
    batch = read_batch(random_images(), torch.arange(11), device=CPU)
    models = [tiny_denoiser(dtype=torch.float64) for _ in range(3)]
    losses = [
        train_step(
            model, torch.optim.SGD(model.parameters(), lr=0.1), batch, num_shards=shards, seed=5
        )
        for model, shards in zip(models[:2], (1, 3), strict=True)
    ]
    by_hand = batch_loss(models[2], batch, 5, "examples")
    (noisy, timesteps), noise = models[2].examples(batch, 5, "examples")
    predicted = models[2].network(noisy, timesteps).sample
    torch.testing.assert_close(by_hand, ((predicted - noise) ** 2).mean())
    assert losses == pytest.approx([by_hand.item()] * 2)
    for one, three in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, three)


def test_smoothed_labels_are_refused_where_there_are_none() -> None:
    assert training_loss(DENOISING) is DENOISING.loss
    with pytest.raises(ValueError, match=r"label_smoothing is 0.1, but denoising has no labels"):
        training_loss(DENOISING, label_smoothing=0.1)


def test_training_learns_resumes_bitwise_and_samples_what_it_learned() -> None:
    half = torch.zeros(64, 3, 8, 8)
    half[:, :, :, 4:] = 255
    images = TensorImages(half.byte(), torch.arange(64) % 2, num_classes=2)
    config = TrainingConfig(
        epochs=30, batch_size=32, learning_rate=0.01, optimizer="adam", weight_decay=0.0
    )

    def started():
        return start_training(tiny_denoiser(), config)

    whole = started()
    metrics = list(train(whole, images, images, config=config))
    assert metrics[-1].validation_accuracy > 0.9 > metrics[0].validation_accuracy
    drawn = sample(whole.model, num_images=8, num_steps=10, seed=1)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (8, 1, 8, 8)
    assert drawn[..., 5:].float().mean() > 170
    assert drawn[..., :3].float().mean() < 85
    assert torch.equal(drawn, sample(whole.model, num_images=8, num_steps=10, seed=1))

    short = TrainingConfig(**{**vars(config), "epochs": 3})
    first, resumed = started(), started()
    epochs = train(first, images, images, config=short)
    next(epochs)
    resumed.load_state_dict(first.state_dict())
    rest = list(train(resumed, images, images, config=short))
    unbroken = started()
    assert rest == list(train(unbroken, images, images, config=short))[1:]
    for ours, theirs in zip(resumed.model.parameters(), unbroken.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
