"""A group of workers over which the model is in parts makes what one worker makes."""

from pathlib import Path

import pytest
import torch

from protection.sophon.algorithm import draw_episodes
from tests.protection.sophon.sharded_runs import (
    CONFIG,
    DOMAINS,
    GROUP,
    NETWORKS,
    bytes_held,
    peak_of_wide,
    protected,
    run_in_parts,
)

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    run_in_parts(folder)
    return folder


def test_the_runs_have_every_method() -> None:
    episodes = [
        episode
        for index in range(CONFIG.rounds)
        for episode in draw_episodes(index, DOMAINS.restricted, config=CONFIG)
    ]
    (family,) = CONFIG.adversary
    assert {episode.strategy.method for episode in episodes} == set(family.methods)
    assert {episode.strategy.optimizer for episode in episodes} == set(family.optimizers)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_in_parts_is_protected_as_a_whole_one(name: str, folder: Path) -> None:
    alone = protected(name)
    for rank in range(GROUP):
        state = torch.load(folder / f"{name}-{rank}.pt")["state"]
        for key, tensor in alone.model.network.state_dict().items():
            # In float64; sums over the group are taken in another order.
            torch.testing.assert_close(state["model"][key], tensor, rtol=1e-9, atol=1e-9)
        for key in ("suppression_optimizer", "reinforcement_optimizer"):
            own = getattr(alone, key).state_dict()["state"]
            for index, values in state[key]["state"].items():
                torch.testing.assert_close(values, own[index], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_worker_holds_its_part(name: str, folder: Path) -> None:
    whole = bytes_held(protected(name))
    for rank in range(GROUP):
        part = torch.load(folder / f"{name}-{rank}.pt")["bytes"]
        # Rows that do not divide by the number of workers go to the first of them.
        assert part == pytest.approx(whole / GROUP, rel=0.1)


def test_the_peak_of_each_worker_falls(folder: Path) -> None:
    alone, estimated = peak_of_wide()
    assert alone == pytest.approx(estimated, rel=0.1)
    for rank in range(GROUP):
        part, estimated = torch.load(folder / f"peak-{rank}.pt")
        # It varies by a block or two, of which this network has few, with when workers let go of
        # what they gathered.
        assert part < 0.85 * alone
        assert 0.8 * estimated < part < 1.3 * estimated
