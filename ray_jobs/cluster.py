"""What a recipe says of the cluster that its job runs on."""

from dataclasses import dataclass
from typing import Final, Literal

# A loop that returns this key failed in a way that no retry would mend; the value says how.
FAILURE: Final = "failure"
# Key of a report with a checkpoint: the greatest are kept.
SCORE: Final = "score"
# Folder, below the storage path, of what Ray Train keeps of a run and of the run's checkpoints.
RUN_NAME: Final = "train"


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """Workers, and where they run. Nothing here changes a result; it may differ from run to run."""

    workers: int | tuple[int, int] = 1
    """Worker processes that share the job; or the fewest and the most, e.g. `[2, 8]`: then it goes
    on with those that are left where machines are lost, and takes in more where they come."""
    cpus_per_worker: int = 1
    """CPU cores, and torch threads, of each worker."""
    gpus_per_worker: float = 0
    """GPUs of each worker; a fraction shares one GPU among several workers of an audit."""
    accelerator_type: str | None = None
    """Only on machines with this kind of GPU, as Ray calls it, e.g. `L4` or `H100`; null: any."""
    placement: Literal["PACK", "SPREAD"] = "PACK"
    """On as few machines as possible, or on as many."""
    address: str | None = None
    """Address of a running Ray cluster, `auto` for the one on this machine; null: RAY_ADDRESS if
    set, else one is started."""
    autoscaling: bool = False
    """Whether the cluster starts machines when a job asks for more than there are; if not, one that
    is too small is refused at once."""
    resize_interval_seconds: float = 60
    """With a range of workers: how often to look whether there could be more; taking them in goes
    back to the last checkpoint."""
    wait_seconds: float = 600
    """Longest wait for machines that are still to come or were lost, before the job fails."""
    max_failures: int = 3
    """Times that lost workers are replaced and the run resumed before the job fails; machines that
    went with a notice do not count."""
    checkpoint_interval_seconds: float = 60
    """Least time between two checkpoints of the training state; 0: after every round."""
    checkpoint_interval_rounds: int | None = None
    """Rounds after which there is one, whatever the time; null: the time decides."""
    keep_checkpoints: int = 2
    """Checkpoints of a run that are kept: its newest, or its best and the newest one."""
    keep_best_by: str | None = None
    """Metric in the run's metrics.jsonl whose greatest values make the best checkpoints, with a
    minus in front its smallest, e.g. `-original_drop`; null: only age counts."""

    def __post_init__(self) -> None:
        """Reject values that no cluster can have."""
        for name, least in (
            ("cpus_per_worker", 1),
            ("max_failures", 0),
            ("checkpoint_interval_rounds", 1),
            ("keep_checkpoints", 1),
        ):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; expected at least {least}")
        for name in (
            "gpus_per_worker",
            "resize_interval_seconds",
            "wait_seconds",
            "checkpoint_interval_seconds",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 0 or more")
        if self.min_workers < 1:
            raise ValueError(f"workers is {self.workers}; expected at least 1")
        if self.is_elastic and self.min_workers >= self.max_workers:
            raise ValueError(
                f"workers is {list(self._range)}; expected the fewest and, above it, the most"
            )
        if self.gpus_per_worker > 1 and self.gpus_per_worker % 1:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker:g}, and only a single GPU is shared; "
                "expected a whole number, or less than 1"
            )
        if self.accelerator_type is not None and not self.uses_gpu:
            raise ValueError(
                f"accelerator_type is {self.accelerator_type}, but gpus_per_worker is 0; expected "
                "GPUs to choose among"
            )

    @property
    def _range(self) -> tuple[int, int]:
        return (self.workers, self.workers) if isinstance(self.workers, int) else self.workers

    @property
    def min_workers(self) -> int:
        """The fewest workers that the job begins or goes on with."""
        return self._range[0]

    @property
    def max_workers(self) -> int:
        """The most workers that it ever has."""
        return self._range[1]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change while the job runs."""
        return not isinstance(self.workers, int)

    @property
    def uses_gpu(self) -> bool:
        """Whether workers compute on a GPU."""
        return self.gpus_per_worker > 0


@dataclass(frozen=True, kw_only=True)
class GroupedClusterConfig(ClusterConfig):
    """A cluster whose workers may share one unit of work, for what does not fit one of them."""

    workers_per_group: int = 1
    """Workers that hold between them what one has no memory for: a model that is protected, or the
    ensemble that protects data."""

    def __post_init__(self) -> None:
        """Reject groups that the workers do not fill."""
        super().__post_init__()
        if self.workers_per_group < 1 or self.max_workers % self.workers_per_group:
            raise ValueError(
                f"workers_per_group is {self.workers_per_group}, but workers is {self.workers}; "
                "expected a divisor of it"
            )
        if self.is_elastic and self.workers_per_group > 1:
            raise ValueError(
                f"workers_per_group is {self.workers_per_group}, but workers is {self.workers}, of "
                "which a group may lose some; expected a fixed number of workers"
            )
