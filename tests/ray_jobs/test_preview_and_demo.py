"""What a person looks at: the picture of a protected dataset, and the demo."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ray_jobs.demo import SHOWN, STEPS, Demo, run
from ray_jobs.errors import UsageError
from ray_jobs.preview import picture_strip
from ray_jobs.recipes import read_recipe
from tests.ray_jobs.conftest import ROOT


def pixels(strip: bytes, *, row: int, column: int) -> np.ndarray:
    """The tile of one image in one row."""
    with Image.open(io.BytesIO(strip)) as picture:
        left, top = 96 + column * 116, row * 116
        return np.asarray(picture.crop((left, top, left + 112, top + 112)))


def test_rows_are_clean_protected_and_the_difference_at_full_contrast() -> None:
    clean = torch.full((3, 8, 8), 100, dtype=torch.uint8)
    protected = clean.clone()
    protected[0] += 8
    protected[1] -= 8
    strip = picture_strip([clean, clean], [protected, clean], levels=8)
    assert (pixels(strip, row=0, column=0) == 100).all()
    assert pixels(strip, row=1, column=0)[0, 0].tolist() == [108, 92, 100]
    # From no change, in the middle, as far as a level goes.
    assert pixels(strip, row=2, column=0)[0, 0].tolist() == [254, 0, 127]
    assert (pixels(strip, row=2, column=1) == 127).all()


@pytest.mark.parametrize("shape", [(1, 5, 9), (2, 300, 200), (3, 1, 1), (4, 17, 17)])
def test_any_size_and_mode_has_its_place(shape: tuple[int, ...]) -> None:
    image = torch.randint(256, shape, dtype=torch.uint8)
    strip = picture_strip([image], [image], levels=2)
    with Image.open(io.BytesIO(strip)) as picture:
        assert picture.size == (96 + 116, 3 * 116)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step.folder}-{step.command}")
def test_every_step_of_the_demo_finds_its_recipe(step: object) -> None:
    recipe = read_recipe(ROOT / "recipes" / step.folder / f"{step.command}.yaml", step.recipe_type)
    assert set(step.places) <= set(vars(recipe))


def test_demo_shows_the_pages_of_both_audits() -> None:
    made = {name for step in STEPS for name in step.places.values()}
    assert {location for location, _ in SHOWN.values()} <= made
    assert SHOWN["model-audit.html"] == ("model-audit", "report.html")
    assert SHOWN["data-audit.html"] == ("data-audit", "report.html")


def test_missing_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pretrain\.yaml is no file"):
        run(Demo(output=str(tmp_path / "out"), recipes=str(tmp_path)))
