"""Normal training reinforcement: steps on original images bring the original accuracy back."""

import torch

from protection.batches import EpochStream, Images, read_batch
from protection.released import ReleasedModel
from protection.seeds import derive_seed
from protection.sophon.config import SophonConfig
from protection.training import train_step
from protection.workers import ALONE, Workers


def reinforce(
    model: ReleasedModel,
    optimizer: torch.optim.Optimizer,
    original: Images,
    *,
    round_index: int,
    config: SophonConfig,
    workers: Workers = ALONE,
) -> float:
    """Take the reinforcement steps of a round; return their mean loss (0 where there are none).

    Round ``t`` reads on in the stream of original images where round ``t - 1`` stopped.

    Raises:
        NonFiniteError: an original loss is NaN or infinite; that step was not taken.

    Source: SOPHON, normal training reinforcement.
    """
    stream = EpochStream(len(original), config.seed, "reinforcement")
    losses = []
    first = round_index * config.reinforcement_steps
    for step in range(first, first + config.reinforcement_steps):
        size = config.reinforcement_batch_size
        batch = read_batch(original, stream.at(step * size, size), device=model.device)
        losses.append(
            train_step(
                model,
                optimizer,
                batch,
                num_shards=config.reinforcement_shards,
                seed=derive_seed(config.seed, "reinforcement", step),
                workers=workers,
                memory=config.memory,
            )
        )
    return sum(losses) / max(1, len(losses))
