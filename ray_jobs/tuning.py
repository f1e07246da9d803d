"""Ray Tune, as a sweep uses it: search, scheduler, resuming, and no word on the terminal."""

import contextlib
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, Final

import optuna
from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical

from ray_jobs.cluster import ClusterConfig
from ray_jobs.connection import require_room
from ray_jobs.errors import JobError
from ray_jobs.sweep_space import Space, as_grid, ends
from ray_jobs.sweep_trials import PROGRESS, STEP
from storage.blobs import open_blobs
from storage.location import Location

# Of the folder, in the sweep's run, of what Tune keeps.
TUNE_NAME: Final = "tune"

_ENVIRONMENT: Final = {
    # By default what is known of the trials is saved every ten seconds at best.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # A row has no metrics of the end, and the end has no row.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Ctrl-C should end in our message.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}
# A trial needs a resource, and a CPU of its own would be one that its workers wait for.
_TRIAL_RESOURCES: Final[dict[str, float]] = {"memory": 100 * 2**20}


def run_trials(
    trial: Callable[[dict[str, Any]], None],
    *,
    param_space: dict[str, Any],
    num_samples: int,
    search: Searcher | SearchAlgorithm,
    scheduler: TrialScheduler | None,
    max_failures: int,
    state: Location,
    callback: tune.Callback,
) -> None:
    """Run all trials, or those that an interrupted sweep at ``state`` left.

    A trial that raises does not end the sweep.

    Args:
        trial: called in a process of its own with what was sampled.
        param_space: what is sampled from.
        num_samples: trials, or for a grid passes over it.
        search: what to try next.
        scheduler: what to stop early, or to go on from another; None: nothing.
        max_failures: times that a trial whose process was lost is begun again.
        state: of the sweep's run.
        callback: hears of every trial.

    Raises:
        JobError: Tune itself failed.
    """
    os.environ.update(_ENVIRONMENT)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # It would have a trial's process go on with other rates; ours end with their job's workers.
    warnings.filterwarnings("ignore", message="Consider boosting PBT")
    trainable = tune.with_resources(trial, _TRIAL_RESOURCES)
    if has_begun(state):
        tuner = tune.Tuner.restore(str(state / TUNE_NAME), trainable=trainable)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=param_space,
            tune_config=tune.TuneConfig(
                num_samples=num_samples,
                search_alg=search,
                scheduler=scheduler,
                # A trial that is stopped early has workers that only its end frees.
                reuse_actors=scheduler is None,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=TUNE_NAME,
                storage_path=str(state),
                callbacks=[callback],
                failure_config=tune.FailureConfig(max_failures=max_failures),
                verbose=0,
            ),
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the result alone
            tuner.fit()
    except tune.TuneError as error:
        raise JobError(
            f"the sweep failed: {str(error).splitlines()[-1]}; its state is in {state}, the same "
            "command goes on from there"
        ) from error


def _trial_id(trial: Any) -> str:
    name: str = trial.trial_id
    return name


def has_begun(state: Location) -> bool:
    """Whether an interrupted sweep at ``state`` can go on."""
    # The first is written before the first trial, and without the second there is none to restore.
    kept = open_blobs(state).list(f"{TUNE_NAME}/")
    names = [name.split("/")[1] for name in kept]
    return "tuner.pkl" in names and any(name.startswith("experiment_state") for name in names)


def searcher(
    name: str,
    space: Space,
    *,
    first: dict[str, Any] | None,
    metrics: list[str],
    num_trials: int,
    concurrent: int,
    seed: int,
) -> tuple[Searcher | SearchAlgorithm, dict[str, Any]]:
    """Return the search ``name``, and ``space`` as it samples from it.

    Args:
        name: random, grid or optuna.
        space: of the sweep.
        first: what is tried before anything is sampled; None: nothing. A grid tries all anyway.
        metrics: to minimise; several make a multi-objective search.
        num_trials: that there will be.
        concurrent: trials at a time. Tune's own setting is for Tune's own choice of a search.
        seed: equal seeds try the same, where what is tried does not depend on results.

    Raises:
        UsageError: the search cannot try this space.
    """
    points = None if first is None else [first]
    if name == "grid":
        return BasicVariantGenerator(max_concurrent=concurrent), as_grid(space)
    if name == "random":
        generator = BasicVariantGenerator(
            points_to_evaluate=points, max_concurrent=concurrent, random_state=seed
        )
        return generator, dict(space)
    # By default the first ten are random, which of a small sweep would be most.
    sampler = optuna.samplers.TPESampler(n_startup_trials=min(10, num_trials // 3 + 1), seed=seed)
    # A list even of one: what a run reports on its way is then left to the scheduler.
    search = OptunaSearch(
        metric=metrics,
        mode=["min"] * len(metrics),
        sampler=sampler,
        points_to_evaluate=points,
    )
    return ConcurrencyLimiter(search, max_concurrent=concurrent), dict(space)


def early_stopping(*, num_steps: int) -> TrialScheduler:
    """Return a scheduler that stops, at a quarter of the steps and later, what is behind."""
    return ASHAScheduler(
        time_attr=STEP,
        metric=PROGRESS,
        mode="min",
        # One more than there are: Tune would stop a trial at the last, before it is measured.
        max_t=num_steps + 1,
        grace_period=max(1, num_steps // 4),
        reduction_factor=2,
    )


def population_based(space: Space, *, every: int) -> TrialScheduler:
    """Return a scheduler by which, each so many steps, the last quarter goes on from the first."""
    return PopulationBasedTraining(
        time_attr=STEP,
        metric=PROGRESS,
        mode="min",
        perturbation_interval=every,
        hyperparam_mutations=dict(space),
        custom_explore_fn=functools.partial(_within, space),
        # The last report of a trial is what was measured in the end.
        require_attrs=False,
    )


def _within(space: Space, values: dict[str, Any]) -> dict[str, Any]:
    """``values``, changed by a factor, no further than the ends of their ranges."""
    for name, domain in space.items():
        if not isinstance(domain, Categorical):
            low, high = ends(name, domain)
            values[name] = min(max(values[name], low), high)
    return values


def concurrent_trials(nodes: list[dict[str, float]], cluster: ClusterConfig) -> int:
    """Return how many trials of ``cluster`` each fit on machines of these resources at a time.

    Raises:
        UsageError: not one does.
    """
    # Of a trial that may do with fewer workers, others would take the rest.
    return max(1, require_room(nodes, cluster) // cluster.max_workers)
