import math

import numpy as np
import pytest
import torch
from torch import Tensor

from protection.audit.imperceptibility import max_change_levels, measure_changes, psnr, ssim


def two_images(*shape: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random images, and the same changed by at most 20 levels."""
    clean = torch.randint(256, shape, generator=rng)
    change = torch.randint(-20, 21, shape, generator=rng)
    return (clean + change).clamp(0, 255).byte(), clean.byte()


def ssim_reference(x: np.ndarray, y: np.ndarray, *, side: int) -> float:
    """Equation 13 of Wang et al. 2004, window by window, of one ``(C, H, W)`` image."""
    places = [(i, j) for i in range(side) for j in range(side)]
    middle = side // 2
    weight = {
        (i, j): math.exp(-((i - middle) ** 2 + (j - middle) ** 2) / (2 * 1.5**2)) for i, j in places
    }
    total = sum(weight.values())
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for a, b in zip(x.astype(np.float64), y.astype(np.float64), strict=True):
        for top in range(a.shape[0] - side + 1):
            for left in range(a.shape[1] - side + 1):
                triples = [
                    (weight[i, j] / total, a[top + i, left + j], b[top + i, left + j])
                    for i, j in places
                ]
                mean_a = sum(w * p for w, p, _ in triples)
                mean_b = sum(w * q for w, _, q in triples)
                variance_a = sum(w * (p - mean_a) ** 2 for w, p, _ in triples)
                variance_b = sum(w * (q - mean_b) ** 2 for w, _, q in triples)
                covariance = sum(w * (p - mean_a) * (q - mean_b) for w, p, q in triples)
                values.append(
                    (2 * mean_a * mean_b + c1)
                    * (2 * covariance + c2)
                    / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))
                )
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("height", "width", "side"), [(14, 12, 11), (11, 11, 11), (8, 13, 7), (2, 5, 1)]
)
def test_ssim_matches_equation_also_where_the_window_does_not_fit(
    height: int, width: int, side: int, rng: torch.Generator
) -> None:
    protected, clean = two_images(3, 2, height, width, rng=rng)
    expected = [
        ssim_reference(x.numpy(), y.numpy(), side=side)
        for x, y in zip(protected, clean, strict=True)
    ]
    # Variances are differences of squares up to 255^2 here: float64 leaves 1e-11 of them.
    assert ssim(protected, clean).tolist() == pytest.approx(expected, abs=1e-9)


def test_equal_images_are_perfect_each_on_its_own(rng: torch.Generator) -> None:
    protected, clean = two_images(2, 3, 16, 16, rng=rng)
    protected[1] = clean[1]
    assert max_change_levels(protected, clean).tolist() == [20, 0]
    assert psnr(protected, clean)[1] == math.inf
    assert ssim(protected, clean)[1].item() == pytest.approx(1, abs=1e-12)
    assert psnr(protected, clean)[0] < 40
    assert ssim(protected, clean)[0] < 0.999


def test_a_constant_shift_has_known_values() -> None:
    clean = torch.full((1, 3, 12, 12), 100, dtype=torch.uint8)
    protected = clean + 5
    assert max_change_levels(protected, clean).tolist() == [5]
    assert psnr(protected, clean).item() == pytest.approx(20 * math.log10(255 / 5))
    # Nothing varies, so only the luminance term is below 1.
    c1 = 2.55**2
    expected = (2 * 105 * 100 + c1) / (105**2 + 100**2 + c1)
    assert ssim(protected, clean).item() == pytest.approx(expected)


def test_change_beyond_half_the_range_does_not_wrap() -> None:
    black, white = (torch.full((1, 1, 2, 2), value, dtype=torch.uint8) for value in (0, 255))
    assert max_change_levels(black, white).item() == 255
    assert psnr(black, white).item() == pytest.approx(0)


@pytest.mark.parametrize("measure", [max_change_levels, psnr, ssim])
def test_other_tensors_are_refused_with_their_shape(measure: object) -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"protected has shape \(3, 8, 8\) and dtype torch\.uint8"):
        measure(images[0], images[0])
    with pytest.raises(ValueError, match=r"clean has .* torch\.float32; expected \(B, C, H, W\)"):
        measure(images, images.float())
    with pytest.raises(ValueError, match=r"\(2, 3, 8, 8\), but clean has \(1, 3, 8, 8\); expected"):
        measure(images, images[:1])


def test_a_list_of_images_of_many_sizes_is_measured_image_by_image(rng: torch.Generator) -> None:
    # The large ones are too many for one stack, and those of a shape do not follow each other.
    shapes = [(3, 12, 16), (3, 200, 100), (1, 8, 8), (3, 200, 100), (3, 12, 16), (3, 200, 100)]
    pairs = [two_images(*shape, rng=rng) for shape in shapes]
    changes = measure_changes(*zip(*pairs, strict=True))
    for measured, measure in zip(changes, (max_change_levels, psnr, ssim), strict=True):
        one_by_one = torch.cat([measure(x[None], y[None]) for x, y in pairs])
        torch.testing.assert_close(measured, one_by_one, rtol=1e-12, atol=0)  # order of summation


def test_lists_of_different_images_are_refused(rng: torch.Generator) -> None:
    protected, clean = two_images(3, 8, 8, rng=rng)
    with pytest.raises(ValueError, match="protected has 2 images and clean 1; expected the same"):
        measure_changes([protected, protected], [clean])
    with pytest.raises(ValueError, match=r"protected has 0 images and clean 0.*at least one"):
        measure_changes([], [])
    with pytest.raises(ValueError, match=r"\(1, 3, 8, 8\), but clean has \(1, 3, 7, 8\)"):
        measure_changes([protected], [clean[:, 1:]])
