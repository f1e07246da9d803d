import pytest

from protection.audit.verdict import estimate, judge, worst_first


def test_estimate_is_students_interval() -> None:
    shown = estimate([0.1, 0.2, 0.4])
    assert shown.mean == pytest.approx(0.7 / 3)
    # t(0.975, 2) = 4.3027; standard deviation of the three is 0.15275.
    assert shown.margin == pytest.approx(4.3027 * 0.15275 / 3**0.5, rel=1e-4)
    assert estimate([0.5]).margin is None
    with pytest.raises(ValueError, match="values is empty"):
        estimate([])


def test_verdict_pairs_seeds_and_puts_the_worst_first() -> None:
    fine = judge(
        "fine", {"protected": [0.1, 0.3], "unprotected": [0.9, 0.9], "scratch": [0.2, 0.4]}
    )
    worst = judge(
        "bad", {"protected": [0.5, 0.5], "unprotected": [0.9, 0.9], "scratch": [0.2, 0.4]}
    )
    assert fine.holds
    assert fine.transfer_gain.mean == pytest.approx(-0.1)
    assert fine.transfer_gain.margin == pytest.approx(0, abs=1e-12)
    assert not worst.holds
    assert worst_first([fine, worst]) == [worst, fine]
