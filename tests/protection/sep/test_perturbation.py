import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protection.sep.block import Block
from protection.sep.config import SepConfig
from protection.sep.perturbation import project, signed_step, to_levels
from tests.protection.sep.members import random_pixels


@given(seed=st.integers(0, 2**16), epsilon=st.floats(1e-6, 1))
def test_projection_stays_in_budget_and_is_idempotent(seed: int, epsilon: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    clean = torch.rand(3, 8, 8, generator=rng)
    moved = 4 * torch.rand(3, 8, 8, generator=rng) - 2
    once = project(moved, clean, epsilon=epsilon)
    assert float((once - clean).abs().max()) <= epsilon + 1e-7  # one rounding of a pixel near 1
    assert 0 <= float(once.min()) <= float(once.max()) <= 1
    assert torch.equal(project(once, clean, epsilon=epsilon), once)


@pytest.mark.parametrize(
    ("epsilon", "message"),
    [
        (2.0, r"epsilon is 2.0, but pixels are in \[0, 1\].*did you mean 2/255\?"),
        (0.0, "epsilon is 0.0"),
        (-0.1, "epsilon is -0.1"),
    ],
)
def test_budget_out_of_range_is_refused(epsilon: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        project(torch.rand(3, 4, 4), torch.rand(3, 4, 4), epsilon=epsilon)


def test_images_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"protected has shape \(3, 4, 4\), but clean has \(3, 4"):
        project(torch.rand(3, 4, 4), torch.rand(3, 4, 5), epsilon=0.1)


def test_step_goes_against_the_sign_and_stays_where_there_is_none() -> None:
    gradient = torch.tensor([1e-30, -7.0, 0.0], dtype=torch.float64)
    moved = signed_step(torch.full((3,), 0.5), gradient, step_size=0.25)
    assert moved.tolist() == [0.25, 0.75, 0.5]


def test_every_level_survives_the_way_to_float_and_back() -> None:
    levels = torch.arange(256, dtype=torch.uint8)
    images = levels.float() / 255
    assert torch.equal(to_levels(images), levels)
    # What truncation would lose: a hair below a level is that level.
    assert torch.equal(to_levels(images - 1e-6 * (images > 0)), levels)


def test_block_gives_images_back_in_order_and_whole() -> None:
    images = [
        *random_pixels(1, 3, 8, 8),
        *random_pixels(1, 1, 5, 9),
        *random_pixels(1, 4, 8, 8),
        *random_pixels(1, 3, 8, 8, seed=1),
        *random_pixels(1, 2, 3, 3),
    ]
    block = Block(images, image_size=8, like=torch.zeros(1))
    back = block.to_images(block.colours)
    assert all(torch.equal(a, b) for a, b in zip(back, images, strict=True))
    inputs = block.inputs(block.colours)
    assert inputs.shape == (5, 3, 8, 8)
    # An image of the input's own size and mode is seen as it is, wherever it stands.
    assert torch.equal(inputs[0], images[0].float() / 255)
    assert torch.equal(inputs[3], images[3].float() / 255)


def test_transparent_pixels_are_seen_white() -> None:
    image = torch.zeros(4, 8, 8, dtype=torch.uint8)
    image[3, :, 4:] = 255
    block = Block([image], image_size=8, like=torch.zeros(1))
    seen = block.inputs(block.colours)
    assert bool((seen[..., :4] == 1).all())
    assert bool((seen[..., 4:] == 0).all())


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 13, 8), (4, 5, 5), (2, 16, 31), (3, 8, 8)])
def test_pulled_back_gradient_is_that_of_the_way_to_the_input(shape: tuple[int, ...]) -> None:
    images = random_pixels(2, *shape, seed=3)
    block = Block(images, image_size=8, like=torch.zeros(1, dtype=torch.float64))
    weights = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    colours = [colour.clone().requires_grad_() for colour in block.colours]
    expected = torch.autograd.grad((block.inputs(colours) * weights).sum(), colours)
    for found, gradient in zip(block.pull_back(weights), expected, strict=True):
        torch.testing.assert_close(found, gradient)


def test_every_pixel_of_a_large_image_feels_the_gradient() -> None:
    block = Block(random_pixels(1, 3, 37, 21), image_size=8, like=torch.zeros(1))
    (gradient,) = block.pull_back(torch.ones(1, 3, 8, 8))
    assert bool((gradient > 0).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epsilon_levels": 0}, "epsilon_levels is 0"),
        ({"epsilon_levels": 256}, "epsilon_levels is 256"),
        ({"step_size_levels": 5.0}, r"step_size_levels is 5.0, but the budget is 2.*at most 4"),
        ({"steps": 0}, "steps is 0"),
        ({"precision": "fp8"}, "precision is 'fp8'; expected one of float32, bfloat16"),
        ({"last_member_means": True}, "last_member_means is true, but it changes nothing"),
        ({"target_classes": [1, 1]}, r"target_classes\[1\] is 1; expected another class than 1"),
        ({"target_classes": [1, 2]}, r"target_classes\[1\] is 2"),
        ({"vectorised_members": 31}, "vectorised_members is 31, but there are 30"),
    ],
)
def test_bad_configuration_names_the_value(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SepConfig(**change)


def test_variants_have_their_published_names() -> None:
    assert SepConfig().variant == "SEP"
    assert SepConfig(feature_alignment=True).variant == "SEP-FA"
    assert SepConfig(feature_alignment=True, variance_reduction=True).variant == "SEP-FA-VR"
