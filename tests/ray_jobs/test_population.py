"""Trials that go on from each other: what is left of that is a recipe, which gives the same."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray import tune

from protection.sophon.adversary import StrategyFamily
from protection.sophon.algorithm import protect, start
from protection.sophon.config import RateChange, SophonConfig
from ray_jobs import population, sweep_trials
from ray_jobs.cluster import RUN_NAME
from ray_jobs.errors import JobError
from ray_jobs.model_files import model_from
from ray_jobs.population import Standing, continued, take_over
from ray_jobs.protect_model import ProtectModel, _open, train_loop_per_worker
from ray_jobs.reporting import METRICS_FILE, append_rows
from ray_jobs.sweep_records import Trial, find_trial
from ray_jobs.sweep_trials import Plan, recipe_of, run_trial
from ray_jobs.swept_jobs import SWEPT_JOBS
from ray_jobs.tuning import population_based
from storage.checkpoints import read_weights
from storage.location import parse_location
from storage.training_state import commit_training_state
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, run_here
from tune_spaces.sophon import SOPHON_RATES

ALPHA, BETA = population.RATES
FIELDS = {ALPHA: 1e-4, BETA: 1e-3}
CHANGES = [{"from_round": 2, "suppression_lr": 2e-4, "reinforcement_lr": 1e-3}]


def a_trial() -> Trial:
    return Trial(trial_id="t1", state="running", fields={ALPHA: 9e-4, BETA: 9e-3}, began=1.0)


def a_standing(**values: Any) -> Standing:
    return Standing(**{"state": "s", "num_done": 4, "fields": FIELDS, "rate_changes": []} | values)


def a_job(model: str, output: Path) -> ProtectModel:
    sophon = SophonConfig(
        rounds=4,
        episode_length=2,
        query_size=8,
        adversary=[StrategyFamily(finetune_lrs=[0.01], batch_sizes=[16])],
        reinforcement_batch_size=32,
        max_original_drop=1.0,
    )
    return ProtectModel(
        model=model, original=ORIGINAL, restricted=[RESTRICTED], output=str(output), sophon=sophon
    )


def test_a_line_of_trials_is_what_it_began_with_and_every_change() -> None:
    other = {ALPHA: 2e-4, BETA: 1e-3}
    taken = continued(a_trial(), a_standing(num_done=2), other)
    assert (taken.fields, taken.rate_changes) == (FIELDS, CHANGES)
    # Its own standing, or where a sweep goes on: nothing changes.
    assert continued(a_trial(), a_standing(rate_changes=CHANGES), other).rate_changes == CHANGES
    third = continued(a_trial(), a_standing(rate_changes=CHANGES), {**other, BETA: 5e-4})
    assert third.rate_changes[1:] == [
        {"from_round": 4, "suppression_lr": 2e-4, "reinforcement_lr": 5e-4}
    ]


def test_recipe_of_a_line_gives_what_going_on_from_another_run_gave(
    model: str, tmp_path: Path
) -> None:
    base = a_job(model, tmp_path / "unused")
    begun = dataclasses.replace(a_trial(), fields=FIELDS)
    donor = recipe_of(begun, base, output=parse_location(tmp_path / "unused"))
    standing = a_standing(state=str(tmp_path / "donor.run"), num_done=2)
    # As far as the other run came, without its cluster.
    opened = _open(donor)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    state = start(model_from(opened.description, weights=model), donor.sophon)
    rounds = protect(state, opened.training_images(), config=donor.sophon)
    next(rounds), next(rounds)
    torch.set_num_threads(threads)
    kept = {"state": state.state_dict(), "reports": []}
    folder = parse_location(standing.state) / RUN_NAME
    commit_training_state(folder / "round-000002-try-1", kept)

    trial = continued(a_trial(), standing, {ALPHA: 2e-4, BETA: 1e-3})
    made = []
    for name in ("continued", "from-the-start"):
        job = recipe_of(trial, base, output=parse_location(tmp_path / name))
        assert job.sophon.rate_changes == [RateChange(**CHANGES[0])]
        if name == "continued":
            take_over(standing, parse_location(tmp_path / f"{name}.run"))
        made.append(read_weights(str(run_here(job, train_loop_per_worker, verb="protect-model"))))
    for name, tensor in made[0].items():
        assert torch.equal(tensor, made[1][name]), name

    with pytest.raises(JobError, match="no checkpoint of round 3"):
        take_over(dataclasses.replace(standing, num_done=3), parse_location(tmp_path / "other.run"))


def test_trial_tells_where_it_is_and_goes_on_where_it_is_told(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune and the job itself are replaced; what is between them is not."""
    said: list[tuple[dict[str, Any], Standing | None]] = []
    seen: list[tuple[ProtectModel, bool]] = []

    def hear(metrics: dict[str, Any], checkpoint: Any = None) -> None:
        text = None if checkpoint is None else (Path(checkpoint.path) / "standing.json").read_text()
        said.append((metrics, None if text is None else Standing(**json.loads(text))))

    def run(job: ProtectModel) -> str:
        state = parse_location(job.output).sibling(".run")
        seen.append((job, (Path(state.path) / RUN_NAME / "round-000002-try-1").is_dir()))
        rows = [
            {"round_index": n, "time": 0.0, "seconds": 1.0, "finetuned_accuracy": n / 10}
            | {"original_drop": 0.0}
            for n in range(8)
        ]
        append_rows(Path(state.path) / METRICS_FILE, rows)
        return job.output

    swept = SWEPT_JOBS["protect-model"]._replace(
        run=run, measure=lambda *_: {"gain": 0.1, "drop": 0.0}
    )
    monkeypatch.setattr(sweep_trials, "SWEPT_JOBS", {"protect-model": swept})
    monkeypatch.setattr(sweep_trials, "connect", lambda _: None)
    monkeypatch.setattr(tune, "report", hear)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t1"))
    monkeypatch.setattr(tune, "get_checkpoint", lambda: None)
    base = a_job(model, tmp_path / "unused")
    base = dataclasses.replace(base, sophon=dataclasses.replace(base.sophon, rounds=8))
    output = parse_location(tmp_path / "sweep")
    state = output.sibling(".run")
    judge: Any = SimpleNamespace(max_original_drop=0.02)
    plan = Plan("protect-model", base, output, state, judge, 2, True)

    run_trial(plan, FIELDS)
    standings = [standing for _, standing in said if standing]
    assert [standing.num_done for standing in standings] == [2, 4, 6]  # at the end none is to come
    assert [m["progress"] for m, standing in said if standing] == pytest.approx([0.05, 0.25, 0.45])
    assert all(standing.fields == FIELDS and standing.rate_changes == [] for standing in standings)
    assert said[-1][0] == {"score": 0.1, "gain": 0.1, "drop": 0.0}

    commit_training_state(
        parse_location(standings[0].state) / RUN_NAME / "round-000002-try-1", {"state": {}}
    )
    checkpoint = tune.Checkpoint.from_directory(tmp_path / "given")
    Path(checkpoint.path).mkdir()
    text = json.dumps(dataclasses.asdict(standings[0]))
    (Path(checkpoint.path) / "standing.json").write_text(text)
    monkeypatch.setattr(tune, "get_checkpoint", lambda: checkpoint)
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t2"))
    said.clear()
    run_trial(plan, {ALPHA: 2e-4, BETA: 1e-3})
    assert [is_there for _, is_there in seen] == [False, True]
    assert seen[1][0].sophon.rate_changes == [RateChange(**CHANGES[0])]
    assert seen[1][0].output.startswith(str(output / "trials/t2-"))
    assert [standing.num_done for _, standing in said if standing] == [4, 6]
    found = find_trial(state, "t2")
    assert found is not None
    assert (found.fields, found.rate_changes, found.state) == (FIELDS, CHANGES, "finished")


def test_changed_rates_stay_within_their_space() -> None:
    scheduler: Any = population_based(SOPHON_RATES, every=5)
    for rates in ({ALPHA: 1e-5, BETA: 1e-5}, {ALPHA: 1e-3, BETA: 1e-2}):
        for _ in range(30):
            changed, _ = scheduler._get_new_config(None, SimpleNamespace(config=rates))
            assert 1e-5 <= changed[ALPHA] <= 1e-3
            assert 1e-5 <= changed[BETA] <= 1e-2
