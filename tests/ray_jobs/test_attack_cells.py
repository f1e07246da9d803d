"""Keys of a model audit's cells: a finished cell is found again by its key alone."""

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protection.audit.families import AttackFamily
from protection.audit.scores import STARTS
from ray_jobs.attack_cells import Cell, Target, _described
from ray_jobs.domains import DomainConfig
from tests.protection.audit.attacking import any_attack, attack


def test_keys_of_what_audits_tried_before_stay_the_same() -> None:
    family = AttackFamily(methods=["redrawn_head"], optimizers=["momentum"], finetune_lrs=[0.01])
    (one,) = family.attacks()
    key = Cell(Target("restricted", 1), one, "scratch", 2).key()
    assert key == "domain1-redrawn_head-momentum-0.01-batch-130-scratch-seed2"
    assert Cell(Target("benign", 1), one, "scratch", 2).key() == key.replace("domain", "benign")


def any_cell() -> st.SearchStrategy[Cell]:
    return st.builds(
        Cell,
        st.builds(Target, st.sampled_from(["restricted", "benign"]), st.integers(0, 20)),
        any_attack(),
        st.sampled_from(STARTS),
        st.integers(0, 10**6),
    )


@given(st.lists(any_cell(), min_size=2, max_size=5))
def test_keys_are_unique_and_safe_in_a_path(some: list[Cell]) -> None:
    keys = {cell.key() for cell in some}
    assert len(keys) == len(set(some))
    for key in keys:
        assert re.fullmatch(r"[A-Za-z0-9_.+-]+", key)
        assert len(f"{key}.json".encode()) < 255


def test_a_long_name_is_cut_and_keeps_its_own_key() -> None:
    long = attack(
        finetune_lr=1 / 3,
        epochs_factor=1 / 3,
        warmup_share=1 / 3,
        label_smoothing=1 / 3,
        data_fraction=1 / 3,
        weight_decay=1 / 3,
        preparation="heal_unrelated",
        preparation_lr=1 / 3,
    )
    other = dataclasses.replace(long, preparation_lr=0.3333)
    assert len(str(long)) > 160
    first, second = (Cell(Target("benign", 0), one, "scratch", 0).key() for one in (long, other))
    assert first != second
    assert first == Cell(Target("benign", 0), dataclasses.replace(long), "scratch", 0).key()


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/home/somebody/faces/train/", "faces/train"),
        ("s3://bucket/faces/train?region=eu-west-1", "faces/train"),
        ("digits:train", "digits:train"),
    ],
)
def test_a_domain_is_named_without_the_path_that_leads_to_it(source: str, shown: str) -> None:
    assert _described(DomainConfig(train=source, test=source)) == shown
    assert _described(DomainConfig(train=source, test=source, classes=[3, "cat"])) == (
        f"{shown} (3, cat)"
    )
