import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protection.seeds import derive_seed, generator, seeded
from protection.workers import ALONE, Workers, mean_over_units, zeros

CPU = torch.device("cpu")


def test_seed_depends_on_every_part_of_its_key_and_on_their_order() -> None:
    keys = [(0, "a", 1), (0, "a", 2), (0, "b", 1), (1, "a", 1), ("a", 0, 1), (0, "a"), (0, "a1")]
    seeds = {derive_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a", 1) == derive_seed(0, "a", 1)


def test_seed_never_changes_between_versions() -> None:
    # A changed derivation would make every resumed run and every recorded result another.
    assert derive_seed(0, "episode", 3, 1) == 1279905190831071379


def test_seeded_repeats_and_leaves_the_global_generator() -> None:
    state = torch.get_rng_state()
    with seeded(1, "x", device=CPU):
        first = torch.rand(3)
    again = torch.zeros(3)

    def draw_and_fail() -> None:
        with seeded(1, "x", device=CPU):
            again.uniform_()
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert torch.equal(again, first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(torch.rand(3, generator=generator(1, "y")), first)


@given(num_units=st.integers(0, 40), size=st.integers(1, 9))
def test_every_unit_is_computed_by_exactly_one_worker(num_units: int, size: int) -> None:
    shares = [list(Workers(rank, size).share(num_units)) for rank in range(size)]
    assert sorted(unit for share in shares for unit in share) == list(range(num_units))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(seed=st.integers(0, 2**16), size=st.integers(2, 5))
def test_mean_in_float64_is_the_same_float32_for_every_number_of_workers(
    seed: int, size: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    # Units that nearly cancel: the order of a float32 sum would show.
    units = torch.randn(12, 50, generator=rng) * 1e3
    units[6:] = -units[:6] + torch.randn(6, 50, generator=rng)

    def partial(rank: int, of: int) -> list[torch.Tensor]:
        sums = zeros([units[0]])
        for unit in Workers(rank, of).share(12):
            sums[0] += units[unit]
        return sums

    alone = partial(0, 1)
    mean_over_units(alone, num_units=12, workers=ALONE)

    def add_the_others(tensors: list[torch.Tensor]) -> None:
        for rank in range(1, size):
            tensors[0] += partial(rank, size)[0]

    shared = partial(0, size)
    mean_over_units(shared, num_units=12, workers=Workers(0, size, add_the_others))
    # Rounding to float32 can only differ where the mean lies within 1e-13 of a rounding boundary.
    torch.testing.assert_close(shared[0].float(), alone[0].float(), rtol=1.2e-7, atol=0)
    torch.testing.assert_close(shared[0], alone[0], rtol=1e-10, atol=1e-13)
