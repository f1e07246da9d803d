"""What a sweep of `protect-data` may try. The budget is not among it: more is always worse."""

from typing import Final

from ray import tune
from ray.tune.search.sample import Domain

SEP: Final[dict[str, Domain]] = {
    "sep.step_size_levels": tune.choice([0.5, 1.0, 2.0]),
    "sep.steps": tune.randint(5, 61),  # upper end excluded: Ray's convention
    "sep.feature_alignment": tune.choice([False, True]),
    "sep.variance_reduction": tune.choice([False, True]),
    "sep.inner_steps": tune.randint(5, 31),
}

# By itself, because a trajectory may have fewer checkpoints.
SEP_MEMBERS: Final[dict[str, Domain]] = {"sep.members": tune.choice([1, 3, 5, 10, 15, 30])}
