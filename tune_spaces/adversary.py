"""What a sweep of `audit-model` may try: the attack that breaks the model.

A number in a field's path is a place in a list: the first strategy of the first family.
"""

from typing import Final

from ray import tune
from ray.tune.search.sample import Domain

_NEW_HEAD: Final = [
    "redrawn_head",
    "redrawn_head_only",
    "redrawn_last_block",
    "lora",
    "gradual_unfreezing",
    "layer_wise_lr",
]

ADVERSARY: Final[dict[str, Domain]] = {
    "adversary.0.methods.0": tune.choice(["all_layers", "head_only", *_NEW_HEAD]),
    "adversary.0.optimizers.0": tune.choice(["sgd", "momentum", "nesterov", "adam", "adamw"]),
    "adversary.0.finetune_lrs.0": tune.loguniform(1e-5, 1e-1),
    "adversary.0.batch_sizes.0": tune.choice([16, 32, 64, 130]),
    "adversary.0.weight_decays.0": tune.choice([0.0, 1e-4, 1e-2]),
    "adversary.0.schedules.0": tune.choice(["constant", "cosine"]),
    "adversary.0.preparations.0": tune.choice(["none", "prune", "int8"]),
    "adversary.0.lora_ranks.0": tune.choice([2, 8, 32]),  # of no account to other methods
}

# For domains of more classes than the model has: every method draws a new head.
NEW_HEAD_ADVERSARY: Final[dict[str, Domain]] = {
    **ADVERSARY,
    "adversary.0.methods.0": tune.choice(_NEW_HEAD),
}
