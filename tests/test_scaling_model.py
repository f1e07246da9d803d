"""The algebra of benchmarks/scaling_model.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.scaling_model import Costs, Link, Shape, fit_costs, fit_link, images_per_second

LINK = Link(1e-4, 1e9)
SHAPE = Shape(episodes=8, episode_length=10, reinforcement_steps=2, shards=4, parameters=10**6)
COSTS = Costs(episode=0.01, step=0.2, reinforcement=0.4, rest=0.3)


def test_one_worker_sums_over_nobody() -> None:
    assert LINK.all_reduce(10**9, workers=1) == 0
    expected = 8 * (0.01 + 10 * 0.2) + 2 * 0.4 + 0.3
    assert COSTS.round_seconds(SHAPE, LINK, workers=1) == pytest.approx(expected)


def test_two_workers_send_half_of_it_twice() -> None:
    # Worked by hand: 2 hops of 0.1 ms and of half of 8 MB at 1 GB/s.
    assert LINK.all_reduce(8e6, workers=2) == pytest.approx(2e-4 + 8e-3)
    expected = 4 * (0.01 + 10 * 0.2) + 2 * 0.2 + 0.3 + 3 * (2e-4 + 8e-3) + 3 * 2e-4
    assert COSTS.round_seconds(SHAPE, LINK, workers=2) == pytest.approx(expected)


@given(workers=st.integers(2, 64))
def test_work_is_shared_and_sums_are_not_free(workers: int) -> None:
    free = Link(0.0, float("inf"))
    least = COSTS.round_seconds(SHAPE, free, workers=workers)
    assert least < COSTS.round_seconds(SHAPE, free, workers=1)
    assert least < COSTS.round_seconds(SHAPE, LINK, workers=workers)


@given(
    st.builds(Costs, *[st.floats(0.01, 1.0)] * 4),
    st.builds(Link, st.floats(1e-6, 1e-3), st.floats(1e6, 1e10)),
)
def test_fits_find_what_times_were_made_of(costs: Costs, link: Link) -> None:
    shapes = [Shape(e, k, r, 1, 0) for e, k, r in [(1, 2, 1), (1, 9, 1), (3, 2, 1), (1, 2, 5)]]
    seconds = [costs.round_seconds(shape, link, workers=1) for shape in shapes]
    assert fit_costs(shapes, seconds) == pytest.approx(costs, rel=1e-6)
    sizes = [0, 1e3, 1e6, 1e8]
    times = [link.all_reduce(size, workers=2) for size in sizes]
    assert fit_link(sizes, times, workers=2) == pytest.approx(link, rel=1e-6)


def test_no_cost_is_negative() -> None:
    shapes = [Shape(e, k, r, 1, 0) for e, k, r in [(1, 1, 0), (2, 1, 0), (1, 2, 0), (1, 1, 1)]]
    assert min(fit_costs(shapes, [1.0, 2.0, 1.5, 0.9])) == 0


def test_the_last_blocks_keep_few_workers_busy() -> None:
    assert images_per_second(0.5, blocks=8, workers=4) == pytest.approx(8)
    assert images_per_second(0.5, blocks=9, workers=4) == pytest.approx(8 * 9 / 12)
