"""What a sweep of `protect-model` may try."""

from typing import Final

from ray import tune
from ray.tune.search.sample import Domain

SOPHON: Final[dict[str, Domain]] = {
    "sophon.suppression_lr": tune.loguniform(1e-5, 1e-3),
    "sophon.reinforcement_lr": tune.loguniform(1e-5, 1e-2),
    "sophon.reinforcement_steps": tune.randint(1, 11),  # upper end excluded: Ray's convention
    "sophon.episode_length": tune.randint(10, 101),
    "sophon.query_size": tune.choice([10, 20, 40]),
    "sophon.clip_norm": tune.choice([0.1, 0.5, 2.0, None]),
    "sophon.suppression_loss": tune.choice(["inverse_cross_entropy", "kl_to_uniform"]),
}

# For denoisers: the released rates are 5e-6 and 2e-4.
SOPHON_DENOISER: Final[dict[str, Domain]] = {
    "sophon.suppression_lr": tune.loguniform(1e-6, 1e-3),
    "sophon.reinforcement_lr": tune.loguniform(1e-5, 1e-2),
    "sophon.reinforcement_steps": tune.randint(1, 21),
    "sophon.episode_length": tune.randint(5, 51),
    "sophon.suppression_loss": tune.choice(["denial_of_service", "negated_mse"]),
}

# The two that decide most, for a sweep of few trials.
SOPHON_RATES: Final[dict[str, Domain]] = {
    name: SOPHON[name] for name in ("sophon.suppression_lr", "sophon.reinforcement_lr")
}
