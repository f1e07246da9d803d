"""Every space fits the recipe of its job, and holds values alone."""

import ast
from pathlib import Path

import pytest
from ray.tune.search.sample import Domain

from protection.audit.families import AttackFamily
from protection.models import ModelConfig
from ray_jobs.audit_model import AuditModel
from ray_jobs.image_sets import ImageSetConfig
from ray_jobs.pretrain import Pretrain
from ray_jobs.protect_data import ProtectData
from ray_jobs.protect_model import ProtectModel
from ray_jobs.sweep_space import check_space, ends, with_values
from ray_jobs.swept_jobs import SWEPT_JOBS
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, ROOT
from tune_spaces import SPACES

RECIPES = {
    "protect-model": ProtectModel(
        model="m", original=ORIGINAL, restricted=[RESTRICTED], output="out"
    ),
    "protect-data": ProtectData(
        dataset=ImageSetConfig(source="digits:train"), trajectory="t", output="out"
    ),
    "pretrain": Pretrain(
        model=ModelConfig(architecture="timm/resnet18", image_size=8),
        original=ORIGINAL,
        output="out",
    ),
    "audit-model": AuditModel(protected="p", output="out", adversary=[AttackFamily()]),
}
ALL = [(job, name) for job, spaces in SPACES.items() for name in spaces]


def test_every_job_that_can_be_swept_has_a_space() -> None:
    assert set(SPACES) == set(SWEPT_JOBS) == set(RECIPES)
    for job, recipe in RECIPES.items():
        assert isinstance(recipe, SWEPT_JOBS[job].recipe)


@pytest.mark.parametrize(("job", "name"), ALL)
def test_every_axis_is_a_field_and_both_ends_build_a_recipe(job: str, name: str) -> None:
    space = SPACES[job][name]
    assert space
    check_space(RECIPES[job], space)
    for field, domain in space.items():
        assert isinstance(domain, Domain)
        for value in ends(field, domain):
            assert with_values(RECIPES[job], {field: value}) is not None


@pytest.mark.parametrize(("job", "name"), ALL)
def test_all_low_ends_and_all_high_ends_go_together(job: str, name: str) -> None:
    for end in (0, -1):
        corner = {field: ends(field, domain)[end] for field, domain in SPACES[job][name].items()}
        with_values(RECIPES[job], corner)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "tune_spaces").glob("*.py")), ids=lambda path: path.name
)
def test_spaces_hold_nothing_that_runs(path: Path) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.AnnAssign, ast.Expr)
    for node in ast.parse(path.read_text()).body:
        assert isinstance(node, allowed), f"{path.name} line {node.lineno} is code"
        if isinstance(node, ast.Expr):
            assert isinstance(node.value, ast.Constant)
