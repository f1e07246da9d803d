"""What a sweep of `pretrain` may try."""

from typing import Final

from ray import tune
from ray.tune.search.sample import Domain

PRETRAINING: Final[dict[str, Domain]] = {
    "training.learning_rate": tune.loguniform(1e-3, 0.5),
    "training.momentum": tune.uniform(0.8, 0.99),
    "training.weight_decay": tune.loguniform(1e-6, 1e-2),
    "training.batch_size": tune.choice([32, 64, 128, 256]),
    "training.label_smoothing": tune.choice([0.0, 0.05, 0.1]),
    "training.random_crop_flip": tune.choice([False, True]),
}
