import math

import hypothesis.strategies as st
import pytest
from hypothesis import given

from storage.retention import keep_last_and_best

RUN = [
    ("one", {"accuracy": 0.1}),
    ("two", {"accuracy": 0.9}),
    ("three", {"accuracy": 0.5}),
    ("four", {"loss": 1.0}),
    ("five", {"accuracy": 0.9}),
    ("six", {"accuracy": math.nan}),
]
values = st.none() | st.integers(-3, 3).map(float) | st.sampled_from([math.nan, math.inf])


def test_last_and_best_are_kept_in_order() -> None:
    assert keep_last_and_best(RUN) == ["six"]
    assert keep_last_and_best(RUN, last=2) == ["five", "six"]
    assert keep_last_and_best(RUN, best=1, metric="accuracy") == ["five", "six"]  # the newer of two
    assert keep_last_and_best(RUN, best=2, metric="accuracy") == ["two", "five", "six"]
    assert keep_last_and_best(RUN, best=1, metric="accuracy", mode="min") == ["one", "six"]
    assert keep_last_and_best([]) == keep_last_and_best([], best=1, metric="accuracy") == []


@given(
    found=st.lists(values, max_size=12),
    last=st.integers(1, 4),
    best=st.integers(1, 4),
    mode=st.sampled_from(["min", "max"]),
)
def test_newest_is_kept_and_nothing_worse_than_what_goes(
    found: list[float | None], last: int, best: int, mode: str
) -> None:
    found = [0.0, *found]
    checkpoints = [(str(n), {} if v is None else {"m": v}) for n, v in enumerate(found)]
    kept = keep_last_and_best(checkpoints, last=last, best=best, metric="m", mode=mode)  # type: ignore[arg-type]
    numbers = [int(name) for name in kept]
    newest = range(max(0, len(found) - last), len(found))
    assert numbers == sorted(numbers)
    assert set(newest) <= set(numbers)
    sign = 1 if mode == "max" else -1
    ranks = {n: (sign * v, n) for n, v in enumerate(found) if v is not None and not math.isnan(v)}
    chosen = set(numbers) - set(newest)
    assert chosen <= set(ranks)
    assert len(chosen) <= best
    for gone in set(ranks) - set(numbers):
        # Whatever goes has at least `best` better ones, or equally good and newer, that stay.
        assert sum(ranks[n] > ranks[gone] for n in numbers if n in ranks) >= best
    # Once more changes nothing: what was kept is kept.
    again = (
        keep_last_and_best(
            [checkpoints[n] for n in numbers],
            last=last,
            best=best,
            metric="m",
            mode=mode,  # type: ignore[arg-type]
        )
        if any("m" in checkpoints[n][1] for n in numbers)
        else kept
    )
    assert again == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"last": 0}, "last is 0; expected at least 1"),
        ({"best": -1}, "best is -1"),
        ({"best": 1}, "metric is None and best is 1; expected both"),
        ({"metric": "accuracy"}, "metric is 'accuracy' and best is 0"),
        ({"best": 1, "metric": "acuracy"}, "'acuracy', which no checkpoint has; .* accuracy, loss"),
        ({"best": 1, "metric": "loss", "mode": "least"}, "mode 'least'"),
    ],
)
def test_rule_that_keeps_something_else_than_meant_is_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        keep_last_and_best(RUN, **options)  # type: ignore[arg-type]


def test_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="'a' twice"):
        keep_last_and_best([("a", {}), ("b", {}), ("a", {})])
