"""SOPHON's outer loop.

As the paper prints it, for each round::

    for each simulated adversary phi ~ Phi:                 # episode.py
        theta_phi = fine-tune theta on restricted data
        accumulate the gradient of L_suppression(theta_phi)
    theta <- theta - alpha * Adam(mean gradient)            # suppression.py
    theta <- theta - beta * Adam(grad L_task(theta; original))  # reinforcement.py, a few times

What the paper does not have: a round after which the original accuracy is too low, or whose
simulated adversary diverged, is rolled back and only reinforces. The run goes on.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from protection.batches import Images
from protection.evaluation import accuracy
from protection.models import Classifier
from protection.parted import load_network, load_optimizer, whole_state
from protection.released import ReleasedModel
from protection.schedules import SCHEDULES
from protection.seeds import derive_seed, generator
from protection.sophon.adversary import draw
from protection.sophon.config import SophonConfig
from protection.sophon.domains import Domains, check_domains
from protection.sophon.episode import Episode
from protection.sophon.losses import SUPPRESSION_LOSSES
from protection.sophon.reinforcement import reinforce
from protection.sophon.rollback import RoundStart
from protection.sophon.suppression import Suppression, suppress, suppression_gradient
from protection.training import NonFiniteError
from protection.workers import ALONE, Workers


class RoundMetrics(NamedTuple):
    """What one round showed; what accuracy is, the model's task defines."""

    round_index: int
    original_accuracy: float
    """On original validation images, at the end of the round."""
    original_drop: float
    """Loss of that accuracy since before the first round, as the task counts it."""
    query_loss: float
    finetuned_accuracy: float
    """On restricted query images at the end of the round's episodes."""
    reinforcement_loss: float
    gradient_norm: float
    """Of the suppression gradient, before clipping."""
    is_rolled_back: bool


@dataclass
class SophonState:
    """All that a run needs to go on: between rounds, nothing else is remembered."""

    model: ReleasedModel
    suppression_optimizer: torch.optim.Adam
    reinforcement_optimizer: torch.optim.Adam
    start_accuracy: float | None = None
    next_round: int = 0
    rollbacks_in_a_row: int = 0

    def state_dict(self) -> dict[str, object]:
        """Tensors and numbers, nested; shares memory with the live state.

        Of a model that is in parts over a group of workers, which must all call it, a copy in one
        piece in the host's memory.
        """
        state: dict[str, object] = whole_state(
            {
                "model": self.model.network.state_dict(),
                "suppression_optimizer": self.suppression_optimizer.state_dict(),
                "reinforcement_optimizer": self.reinforcement_optimizer.state_dict(),
                "start_accuracy": self.start_accuracy,
                "next_round": self.next_round,
                "rollbacks_in_a_row": self.rollbacks_in_a_row,
            }
        )
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        load_network(self.model.network, state["model"])
        load_optimizer(self.suppression_optimizer, state["suppression_optimizer"])
        load_optimizer(self.reinforcement_optimizer, state["reinforcement_optimizer"])
        for name in ("start_accuracy", "next_round", "rollbacks_in_a_row"):
            setattr(self, name, state[name])


def start(model: ReleasedModel, config: SophonConfig) -> SophonState:
    """State before the first round; suppression and reinforcement have an Adam each."""
    return SophonState(
        model,
        torch.optim.Adam(model.parameters(), lr=config.suppression_lr),
        torch.optim.Adam(model.parameters(), lr=config.reinforcement_lr),
    )


def protect(
    state: SophonState,
    domains: Domains,
    *,
    config: SophonConfig,
    workers: Workers = ALONE,
) -> Iterator[RoundMetrics]:
    """Run the rounds that are left; ``state`` is current and resumable whenever a value is yielded.

    The result depends on ``config`` and ``domains``, not on the number of workers.

    Raises:
        ValueError: the configuration does not fit the domains.
        NonFiniteError: a reinforcement loss is not finite, or ``max_rollbacks`` rounds in a row
            were rolled back.

    Source: SOPHON, algorithm 1.
    """
    model, task = state.model, state.model.task
    model_classes = model.num_classes if isinstance(model, Classifier) else None
    check_domains(domains, task=task, model_classes=model_classes, config=config)

    def original_accuracy() -> float:
        return accuracy(
            model,
            domains.original_validation,
            device=model.device,
            workers=workers,
            max_images=config.validation_images,
        )

    if state.start_accuracy is None:
        state.start_accuracy = original_accuracy()
    for round_index in range(state.next_round, config.rounds):
        _set_rates(state, round_index, config)
        before = _round_start(state, config)
        suppression = _suppress(state, domains, round_index, config, workers)
        reinforcement_loss = _reinforce(state, domains, round_index, config, workers)
        current, failure = original_accuracy(), suppression.failure
        drop = task.drop(state.start_accuracy, current)
        if failure is None and before is not None and drop > config.max_original_drop:
            failure = f"original accuracy fell from {state.start_accuracy:.3f} to {current:.3f}"
            before.restore()
            reinforcement_loss = _reinforce(state, domains, round_index, config, workers)
            current = original_accuracy()
        state.next_round = round_index + 1
        state.rollbacks_in_a_row = state.rollbacks_in_a_row + 1 if failure else 0
        if state.rollbacks_in_a_row >= config.max_rollbacks:
            raise NonFiniteError(
                f"{config.max_rollbacks} rounds in a row were rolled back, the last (round "
                f"{round_index}) because {failure}; expected progress (try a smaller "
                "suppression_lr or finetune_lr)"
            )
        yield RoundMetrics(
            round_index=round_index,
            original_accuracy=current,
            original_drop=task.drop(state.start_accuracy, current),
            query_loss=suppression.query_loss,
            finetuned_accuracy=suppression.finetuned_accuracy,
            reinforcement_loss=reinforcement_loss,
            gradient_norm=suppression.gradient_norm,
            is_rolled_back=failure is not None,
        )


def _round_start(state: SophonState, config: SophonConfig) -> RoundStart | None:
    """Copy what a bad round is undone with; None where no round is bad."""
    if config.max_original_drop == 1:
        return None
    optimizers = [state.suppression_optimizer, state.reinforcement_optimizer]
    return RoundStart(state.model, optimizers, in_host_memory=config.memory.host_copies)


def _set_rates(state: SophonState, round_index: int, config: SophonConfig) -> None:
    factor = SCHEDULES[config.schedule](round_index / config.rounds)
    alpha, beta = config.rates_at(round_index)
    for optimizer, rate in (
        (state.suppression_optimizer, alpha),
        (state.reinforcement_optimizer, beta),
    ):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def draw_episodes(
    round_index: int, restricted: Sequence[Images], *, config: SophonConfig
) -> list[Episode]:
    """Episodes of a round; each depends on the run's seed, the round and its own index alone."""
    episodes = []
    for index in range(config.episodes_per_round):
        rng = generator(config.seed, "episode", round_index, index)
        domain = restricted[int(torch.randint(len(restricted), (1,), generator=rng))]
        episodes.append(
            Episode(
                seed=derive_seed(config.seed, "episode", round_index, index),
                restricted=domain,
                strategy=draw(config.adversary, rng=rng),
                length=config.episode_length,
                query_size=config.query_size,
            )
        )
    return episodes


def _suppress(
    state: SophonState, domains: Domains, round_index: int, config: SophonConfig, workers: Workers
) -> Suppression:
    try:
        mean = suppression_gradient(
            state.model,
            draw_episodes(round_index, domains.restricted, config=config),
            suppression_loss=SUPPRESSION_LOSSES[state.model.task.name][config.suppression_loss],
            workers=workers,
            memory=config.memory,
        )
        norm = suppress(
            state.model,
            state.suppression_optimizer,
            mean.gradient,
            clip_norm=config.clip_norm,
        )
    except NonFiniteError as error:  # the same on all workers: it comes of reduced numbers
        return Suppression(math.nan, math.nan, math.nan, str(error))
    return Suppression(mean.query_loss, mean.finetuned_accuracy, norm, None)


def _reinforce(
    state: SophonState, domains: Domains, round_index: int, config: SophonConfig, workers: Workers
) -> float:
    try:
        return reinforce(
            state.model,
            state.reinforcement_optimizer,
            domains.original,
            round_index=round_index,
            config=config,
            workers=workers,
        )
    except NonFiniteError as error:
        raise NonFiniteError(
            f"{error} in the reinforcement of round {round_index}; expected a finite number (check "
            "the weights and the original images)"
        ) from error
