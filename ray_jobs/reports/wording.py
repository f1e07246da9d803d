"""How reports write numbers, counts and names, wherever they are read."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from protection.audit.scores import Cost, Estimate

NOISE: Final = (
    "Half of the 95 % interval of the mean over seeds (Student's t). Noise: the interval of a "
    "difference includes 0."
)
"""What ± and noise mean."""


def points(share: float, *, sign: str = "") -> str:
    """Write a share in points of a hundred."""
    # Rounded before the sign is written: -0.04 points are no loss.
    return f"{round(100 * share, 1) + 0.0:{sign}.1f}"


def show(value: Estimate, *, sign: str = "") -> str:
    """Write an estimate in points: mean and half-width of the 95 % interval."""
    margin = "" if value.margin is None else f" ± {100 * value.margin:.1f}"
    return f"{points(value.mean, sign=sign)}{margin}"


def show_stored(value: Mapping[str, Any], *, sign: str = "") -> str:
    """Write an estimate that a report holds as JSON, as `show` does."""
    return show(Estimate(**value), sign=sign)


def show_noise(is_clear: bool | None) -> str:
    """Write what a sentence adds to a difference that is not `is_clear`."""
    return {True: "", False: ", within the noise", None: ", by one seed"}[is_clear]


def with_noise(outcome: str, is_clear: bool | None) -> str:
    """Write an outcome in a table, and whether it may be chance."""
    return f"{outcome} (noise)" if is_clear is False else outcome


def show_cost(cost: Cost) -> str:
    """Write a cost ratio, or within how many epochs there was none."""
    times = f"{cost.ratio:.1f} \N{MULTIPLICATION SIGN}"
    return f"not within {cost.within_epochs}" if cost.is_bound else times


def mean_over(seeds: Sequence[int]) -> str:
    """Say what the numbers of a table are that `show` writes."""
    if len(seeds) == 1:
        return "mean over 1 seed"
    return f"mean over {len(seeds)} seeds and 95 % interval"


def count(number: int, noun: str) -> str:
    """Write how many there are: 1 attack, 2 attacks."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def list_seeds(seeds: Sequence[int]) -> str:
    """Write which seeds: seed 0, or seeds 0, 1, 2."""
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table; no value breaks out of its cell."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(map(escaped, line))} |" for line in lines]


def escaped(text: str) -> str:
    """``text`` as Markdown shows it unchanged, also in a table's cell."""
    for character, written in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("\n", " ")):
        text = text.replace(character, written)
    return text
