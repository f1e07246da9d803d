import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from torch import Tensor

from protection.audit.detectability import detect, pixels, spectrum
from protection.seeds import generator


def photographs(num_images: int, *, rng: torch.Generator) -> Tensor:
    """Images that vary slowly, as photographs do."""
    coarse = torch.rand(num_images, 3, 3, 3, generator=rng) * 200 + 20
    smooth = torch.nn.functional.interpolate(coarse, size=16, mode="bicubic", align_corners=True)
    return smooth.clamp(0, 255).byte()


def test_images_that_do_not_differ_are_told_apart_by_guessing(rng: torch.Generator) -> None:
    images = photographs(60, rng=rng)
    found = detect(images, images.clone(), seed=0)
    assert {name: tuple(value) for name, value in found.items()} == {
        "pixels": (0.5, 0.5),
        "spectrum": (0.5, 0.5),
    }


def test_noise_that_no_pixel_shows_is_seen_in_the_spectrum(rng: torch.Generator) -> None:
    clean = photographs(200, rng=rng)
    noise = torch.randint(-2, 3, clean.shape, generator=rng)
    protected = (clean.long() + noise).clamp(0, 255).byte()
    found = detect(protected, clean, seed=0)
    # 100 held-out pairs: chance is within 0.1 of a half (two standard errors).
    assert found["pixels"].balanced_accuracy < 0.65
    assert found["spectrum"].balanced_accuracy > 0.85
    assert found["spectrum"].auc > 0.9
    assert detect(protected, clean, seed=0) == found
    assert detect(protected, clean, seed=1) != found


@pytest.mark.parametrize("features", [pixels, spectrum])
def test_probe_is_scikit_learns_logistic_regression(features: object, rng: torch.Generator) -> None:
    clean = photographs(80, rng=rng)
    protected = (clean.long() + torch.randint(-1, 2, clean.shape, generator=rng)).clamp(0, 255)
    protected = protected.byte()
    order = torch.randperm(80, generator=generator(5, "detection"))

    def half(start: int) -> Tensor:
        chosen = order[start::2]
        return torch.cat([features(protected[chosen]), features(clean[chosen])])

    truth = torch.arange(80) < 40
    mean, std = half(0).mean(dim=0), half(0).std(dim=0)
    model = LogisticRegression(tol=1e-8, max_iter=10_000)
    model.fit((half(0) - mean) / std, truth)
    scores = model.decision_function((half(1) - mean) / std)
    found = detect(protected, clean, seed=5)[features.__name__]
    # A pair of images whose scores nearly tie may be ranked otherwise: one of 1600.
    assert found.auc == pytest.approx(roc_auc_score(truth, scores), abs=0.002)
    expected = balanced_accuracy_score(truth, scores > 0)
    assert found.balanced_accuracy == pytest.approx(expected, abs=1e-9)


def test_other_images_are_refused_with_their_shapes() -> None:
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"shape \(4, 3, 8, 8\) and clean \(4, 3, 8, 7\)"):
        detect(images, images[..., :7], seed=0)
    with pytest.raises(ValueError, match=r"shape \(3, 3, 8, 8\).*at least 4"):
        detect(images[:3], images[:3], seed=0)
