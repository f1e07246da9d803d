"""The numbers of SOPHON, with the released code's values as defaults."""

from dataclasses import dataclass, field

from protection.names import nearest
from protection.savings import MemoryConfig
from protection.schedules import SCHEDULES
from protection.sophon.adversary import StrategyFamily
from protection.sophon.losses import SUPPRESSION_LOSSES


@dataclass(frozen=True, kw_only=True)
class RateChange:
    """Other learning rates from some round on, as population-based training finds them."""

    from_round: int
    """Rounds before it keep the rates before it."""
    suppression_lr: float | None = None
    """Null: as before."""
    reinforcement_lr: float | None = None
    """Null: as before."""

    def __post_init__(self) -> None:
        """Reject what no optimizer can use."""
        if self.from_round < 1:
            raise ValueError(f"from_round is {self.from_round}; expected at least 1")
        _check_rates(self)


@dataclass(frozen=True, kw_only=True)
class SophonConfig:
    """Non-fine-tunable learning; every default is the released code's unless it says otherwise."""

    rounds: int = 800
    """Rounds of suppression and reinforcement (released: 800 to 1000)."""
    episodes_per_round: int = 1
    """Simulated adversaries whose gradients one suppression step averages; at least the number of
    workers."""
    episode_length: int = 50
    """Fine-tuning steps in an episode, K."""
    query_size: int = 20
    """Query images per fine-tuning step; the support size is the strategy's batch size."""
    adversary: list[StrategyFamily] = field(default_factory=lambda: [StrategyFamily()])
    """What episodes draw their strategies from."""
    suppression_loss: str = "inverse_cross_entropy"
    """Of classifiers inverse_cross_entropy, negated_logit_cross_entropy or kl_to_uniform, of
    denoisers denial_of_service (released: suppression_lr 5e-6, reinforcement_lr 2e-4, 10
    reinforcement steps, 200 rounds) or negated_mse."""
    suppression_lr: float = 3e-4
    """Learning rate of the suppression's Adam, alpha."""
    clip_norm: float | None = 0.5
    """Greatest global norm of the suppression gradient; null: not clipped."""
    reinforcement_steps: int = 1
    """Steps on original images after each suppression step."""
    reinforcement_lr: float = 5e-4
    """Learning rate of the reinforcement's Adam, beta."""
    reinforcement_batch_size: int = 150
    """Original images per reinforcement step."""
    reinforcement_shards: int = 1
    """Parts of that batch that workers share; BatchNorm sees one part at a time."""
    rate_changes: list[RateChange] = field(default_factory=list)
    """Changes of both learning rates, in order of their rounds."""
    schedule: str = "constant"
    """Of both learning rates over the rounds: constant, as in the paper, or cosine, down to zero at
    the end: the last rounds then undo what a high rate costs the original domain."""
    validation_images: int = 1000
    """Original validation images, at most, on which every round is measured."""
    max_original_drop: float = 0.05
    """Greatest loss of original validation accuracy, in [0, 1], before a round is rolled back; 1:
    never, as in the paper. Of a denoiser: the share by which its error may grow."""
    max_rollbacks: int = 20
    """Rounds rolled back one after another before the run gives up."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """What is saved so that a large model fits."""
    seed: int = 0
    """Of episodes, strategies and batches."""

    def __post_init__(self) -> None:
        """Reject values that no run can use."""
        known = [name for losses in SUPPRESSION_LOSSES.values() for name in losses]
        if self.suppression_loss not in known:
            raise ValueError(
                f"suppression_loss is {self.suppression_loss!r}, which names no loss; expected one "
                f"of {', '.join(known)}{nearest(self.suppression_loss, known)}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(
                f"schedule is {self.schedule!r}, which names none; expected {', '.join(SCHEDULES)}"
            )
        for name in (
            "rounds",
            "episodes_per_round",
            "episode_length",
            "query_size",
            "reinforcement_batch_size",
            "reinforcement_shards",
            "max_rollbacks",
            "validation_images",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.reinforcement_steps < 0:
            raise ValueError(
                f"reinforcement_steps is {self.reinforcement_steps}; expected 0 or more"
            )
        _check_rates(self)
        starts = [change.from_round for change in self.rate_changes]
        if starts != sorted(set(starts)):
            raise ValueError(
                f"rate_changes begin with the rounds {', '.join(map(str, starts))}; expected each "
                "after the one before"
            )
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; expected a positive number or null")
        if not 0 < self.max_original_drop <= 1:
            raise ValueError(
                f"max_original_drop is {self.max_original_drop}, a share; expected above 0, at "
                "most 1"
                + (
                    f" (did you mean {self.max_original_drop / 100:g}?)"
                    if self.max_original_drop <= 100
                    else ""
                )
            )
        if self.adversary and self.memory.batch_parts > self.most_parts:
            raise ValueError(
                f"memory.batch_parts is {self.memory.batch_parts}, but query_size is "
                f"{self.query_size} and the smallest support batch "
                f"{min(self._batch_sizes)}; expected at most {self.most_parts}, which leaves 2 "
                "images to each part"
            )
        if not self.adversary:
            raise ValueError("adversary is empty, so no episode can be drawn; expected a family")
        if self.reinforcement_batch_size < 2 * self.reinforcement_shards:
            raise ValueError(
                f"reinforcement_shards is {self.reinforcement_shards}, but BatchNorm needs 2 "
                f"images a shard; expected at most {self.reinforcement_batch_size // 2}"
            )

    def rates_at(self, round_index: int) -> tuple[float, float]:
        """Learning rates of suppression and reinforcement, before their schedule."""
        alpha, beta = self.suppression_lr, self.reinforcement_lr
        for change in self.rate_changes:
            if change.from_round <= round_index:
                alpha = change.suppression_lr or alpha
                beta = change.reinforcement_lr or beta
        return alpha, beta

    @property
    def most_parts(self) -> int:
        """Into how many parts support and query batches can be cut: BatchNorm needs 2 images."""
        return max(1, min(self.query_size, *self._batch_sizes) // 2)

    @property
    def _batch_sizes(self) -> list[int]:
        return [size for family in self.adversary for size in family.batch_sizes]


def _check_rates(config: SophonConfig | RateChange) -> None:
    for name in ("suppression_lr", "reinforcement_lr"):
        rate = getattr(config, name)
        if rate is not None and not 0 < rate < 1:
            raise ValueError(f"{name} is {rate}; expected between 0 and 1")
