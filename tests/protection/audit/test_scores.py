import pytest
from hypothesis import given
from hypothesis import strategies as st

from protection.audit.scores import (
    Estimate,
    accuracy_cost,
    cost_ratio,
    epochs_to,
    estimate,
    holds,
    intactness,
    is_clear,
    mean_curve,
    trainability,
    transfer_gain,
)

ACCURACIES = st.integers(0, 20).map(lambda twentieths: twentieths / 20)


def test_estimate_is_students_interval() -> None:
    shown = estimate([0.1, 0.2, 0.4])
    assert shown.mean == pytest.approx(0.7 / 3)
    # t(0.975, 2) = 4.3027; standard deviation of the three is 0.15275.
    assert shown.margin == pytest.approx(4.3027 * 0.15275 / 3**0.5, rel=1e-4)
    assert estimate([0.5]).margin is None
    with pytest.raises(ValueError, match="values is empty"):
        estimate([])


def test_differences_are_of_the_same_seed() -> None:
    gain = transfer_gain([0.1, 0.3], [0.2, 0.4])
    assert gain.mean == pytest.approx(-0.1)
    assert gain.margin == pytest.approx(0, abs=1e-12)  # though seeds differ by more than that
    assert trainability([0.7, 0.9], [0.8, 0.8]).mean == pytest.approx(0)
    assert accuracy_cost([0.9, 0.8], [0.2, 0.5]).mean == pytest.approx(0.5)
    assert intactness(0.95, 0.93) == pytest.approx(0.02)
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        transfer_gain([0.1, 0.2], [0.1])


@pytest.mark.parametrize(
    ("gain", "held", "clear"),
    [
        (Estimate(-0.1, 0.05), True, True),
        (Estimate(-0.1, 0.1), True, False),
        (Estimate(0.0, 0.0), True, False),
        (Estimate(0.001, 0.1), False, False),
        (Estimate(0.001, 0.0), False, True),
        (Estimate(0.2, None), False, None),
    ],
)
def test_a_protection_holds_at_no_gain_and_is_clear_beyond_the_interval(
    gain: Estimate, held: bool, clear: bool | None
) -> None:
    assert (holds(gain), is_clear(gain)) == (held, clear)


def test_epochs_count_from_one() -> None:
    assert epochs_to([0.1, 0.5, 0.3, 0.9], 0.5) == 2
    assert epochs_to([0.5], 0.5) == 1
    assert epochs_to([0.1, 0.2], 0.5) is None


def test_cost_is_the_lower_median_of_the_seeds() -> None:
    scratch = [[0.2, 0.6, 0.6]] * 4  # its last accuracy after 2 epochs
    protected = [[0.6, 0, 0], [0, 0.6, 0], [0, 0, 0.6], [0.7, 0, 0]]
    cost = cost_ratio(protected, scratch)
    assert (cost.ratio, cost.is_bound) == (0.5, False)  # of 0.5, 0.5, 1 and 1.5
    assert cost.epochs == [(1, 2), (2, 2), (3, 2), (1, 2)]


def test_cost_that_is_not_reached_is_a_bound() -> None:
    scratch = [[0.5, 0.5, 0.5]] * 3
    cost = cost_ratio([[0.1, 0.2, 0.3]] * 3, scratch)
    assert (cost.ratio, cost.is_bound, cost.within_epochs) == (3, True, 3)
    assert cost.epochs == [(None, 1)] * 3
    # One seed of three never gets there: the median is known all the same.
    cost = cost_ratio([[0.1, 0.2, 0.3], [0.1, 0.5, 0.5], [0.1, 0.1, 0.5]], scratch)
    assert (cost.ratio, cost.is_bound) == (3, False)
    # Ended after an epoch, so that nobody knows what would have come: a bound of 1.
    cost = cost_ratio([[0.1], [0.1], [0.5, 0.5, 0.5]], scratch)
    assert (cost.ratio, cost.is_bound, cost.within_epochs) == (1, True, 1)


@given(data=st.data(), num_seeds=st.integers(1, 5), num_epochs=st.integers(2, 6))
def test_stopping_sooner_never_raises_a_cost_and_never_misleads(
    data: st.DataObject, num_seeds: int, num_epochs: int
) -> None:
    curves = st.lists(ACCURACIES, min_size=num_epochs, max_size=num_epochs)
    by_seed = st.lists(curves, min_size=num_seeds, max_size=num_seeds)
    protected, scratch = data.draw(by_seed), data.draw(by_seed)
    # Long enough to get there in the end.
    full = cost_ratio([[*curve, 1.0] for curve in protected], scratch)
    kept = data.draw(st.lists(st.integers(1, num_epochs), min_size=num_seeds, max_size=num_seeds))
    stopped = [curve[:length] for curve, length in zip(protected, kept, strict=True)]
    shorter = cost_ratio(stopped, scratch)
    assert not full.is_bound
    assert shorter.ratio <= full.ratio
    if not shorter.is_bound:
        assert shorter.ratio == full.ratio


def test_mean_curve_holds_what_ended_early() -> None:
    assert mean_curve([[0.2, 0.4, 0.6], [0.4]]) == pytest.approx([0.3, 0.4, 0.5])
