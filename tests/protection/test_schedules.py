import pytest
from hypothesis import given
from hypothesis import strategies as st

from protection.schedules import SCHEDULES, lr_factor


@pytest.mark.parametrize("name", SCHEDULES)
@given(total=st.integers(1, 200), share=st.floats(0, 0.99))
def test_every_schedule_rises_to_one_and_stays_within(name: str, total: int, share: float) -> None:
    warmup = round(share * total)
    factors = [
        lr_factor(step, total=total, warmup=warmup, schedule=SCHEDULES[name])
        for step in range(total)
    ]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)
    assert factors[warmup:][:1] in ([1.0], [])


def test_cosine_is_half_way_down_half_way_through_and_constant_never() -> None:
    assert SCHEDULES["cosine"](0.5) == pytest.approx(0.5)
    assert SCHEDULES["cosine"](1.0) == 0
    assert SCHEDULES["constant"](1.0) == 1
