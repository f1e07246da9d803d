"""The recipe of `ringfence sweep`."""

from dataclasses import dataclass, field
from typing import Any, Final

from protection.names import nearest
from ray_jobs.audit_data import Appropriator
from ray_jobs.quick_audit import QuickAudit
from ray_jobs.swept_jobs import SWEPT_JOBS

SEARCHES: Final = ("random", "grid", "optuna")
SCHEDULERS: Final = ("none", "asha", "pbt")
OBJECTIVES: Final = ("constrained", "pareto")
# Jobs whose output has an audit.
_AUDITED: Final = ("protect-model", "protect-data")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Search for the fields of another job's recipe that serve best, on validation images."""

    job: str
    """protect-model, protect-data, pretrain, or audit-model (the attack that gains most)."""
    recipe: str
    """YAML recipe of that job; its cluster is what each trial gets."""
    space: str
    """What trials may set: sophon, sophon-rates, sophon-denoiser, sep, sep-members, pretraining,
    adversary or new-head-adversary, all in tune_spaces/; or `package.module:NAME` of your own."""
    output: str
    """Location to commit the comparison to, and below which trials are kept; must not exist yet."""
    fields: list[str] | None = None
    """Fields of the space to set; null: all of them."""
    fixed: dict[str, Any] = field(default_factory=dict)
    """Fields that all trials set alike, by path: fewer rounds than the final run has, say."""
    search: str = "optuna"
    """random, grid (every combination of choices) or optuna (learns from trials that are over)."""
    trials: int | None = 16
    """Trials to run; null for a grid, which knows."""
    scheduler: str = "none"
    """none; asha: stop trials early whose rounds show less than those of others; or pbt, for
    protect-model, population-based training of the two learning rates: a trial whose rounds show
    less goes on from one whose rounds show more, with rates somewhat other than that one's."""
    change_every: int | None = None
    """For pbt: rounds between two such comparisons; null: a quarter of them."""
    objective: str = "constrained"
    """constrained, or pareto: for protect-model, also search along the trade of original accuracy
    against protection."""
    max_original_drop: float = 0.02
    """For protect-model: loss of original validation accuracy, a share, above which a trial ranks
    behind all others."""
    quick_audit: QuickAudit = field(default_factory=QuickAudit)
    """For protect-model: attacks, measured on validation images, that a trial is judged by."""
    appropriator: Appropriator | None = None
    """For protect-data: a short training on protected images, measured on clean ones held out."""
    audit: str | None = None
    """YAML recipe of audit-model or audit-data for the winner, on test images; null: none."""
    max_concurrent_trials: int | None = None
    """Trials at a time; null: as many as the cluster has room for."""
    seed: int = 0
    """Of what is tried."""

    def __post_init__(self) -> None:
        """Reject names that name nothing, and settings that would be ignored."""
        for name, known in (
            ("job", SWEPT_JOBS),
            ("search", SEARCHES),
            ("scheduler", SCHEDULERS),
            ("objective", OBJECTIVES),
        ):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(
                    f"{name} is {value!r}; expected one of {', '.join(known)}"
                    f"{nearest(value, known)}"
                )
        if (self.search == "grid") != (self.trials is None):
            raise ValueError(
                f"trials is {self.trials}, but search is {self.search}; expected null for a grid, "
                "which tries every combination, and a number for any other"
            )
        for name in ("trials", "max_concurrent_trials"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; expected at least 1")
        if not 0 <= self.max_original_drop <= 1:
            raise ValueError(
                f"max_original_drop is {self.max_original_drop}, a share; expected 0 to 1"
            )
        self._refuse_what_the_job_cannot_use()

    def _refuse_what_the_job_cannot_use(self) -> None:
        if self.scheduler == "asha" and SWEPT_JOBS[self.job].rounds is None:
            raise ValueError(
                f"scheduler is asha, but rounds of {self.job} say nothing of how it will do; "
                "expected none"
            )
        if self.scheduler == "pbt" and (self.job != "protect-model" or self.search != "random"):
            raise ValueError(
                f"scheduler is pbt, but job is {self.job} and search {self.search}; expected "
                "protect-model, whose learning rates can change on the way, and random, from which "
                "the population begins"
            )
        if self.change_every is not None and (self.scheduler != "pbt" or self.change_every < 1):
            raise ValueError(
                f"change_every is {self.change_every} and scheduler {self.scheduler}; expected a "
                "number of rounds with pbt, and null with any other"
            )
        if self.objective == "pareto" and (self.job != "protect-model" or self.scheduler != "none"):
            raise ValueError(
                f"objective is pareto, but job is {self.job} and scheduler {self.scheduler}; "
                "expected protect-model, which has two metrics, and none, which compares neither"
            )
        if (self.job == "protect-data") != (self.appropriator is not None):
            raise ValueError(
                f"job is {self.job} and appropriator is "
                f"{'null' if self.appropriator is None else 'given'}; expected one for "
                "protect-data and null for any other"
            )
        if self.audit is not None and self.job not in _AUDITED:
            raise ValueError(
                f"audit is {self.audit}, but what {self.job} makes has no audit; expected null"
            )
