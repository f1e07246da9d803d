"""What a sweep refuses before a cluster starts, and what it takes for the same sweep."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune
from ray.tune.search import BasicVariantGenerator

from ray_jobs import sweep, tuning
from ray_jobs.audit_model import AuditModel
from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError, UsageError
from ray_jobs.protect_model import ProtectModel
from ray_jobs.recipes import to_plain
from ray_jobs.runs import begin, find_run
from ray_jobs.sweep_recipe import Sweep
from ray_jobs.sweep_records import Trial, write_trial
from ray_jobs.swept_jobs import SWEPT_JOBS
from storage.blobs import open_blobs
from storage.location import parse_location
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED

PBT = {"scheduler": "pbt", "search": "random"}


def a_sweep(**values: Any) -> Sweep:
    known = {"job": "protect-model", "recipe": "r.yaml", "space": "sophon", "output": "out"}
    return Sweep(**{**known, **values})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"job": "protect-modle"}, r"job is 'protect-modle'.*did you mean protect-model\?"),
        ({"search": "optunna"}, r"search is 'optunna'.*did you mean optuna\?"),
        ({"scheduler": "pbd"}, r"scheduler is 'pbd'; expected one of none, asha, pbt \(did"),
        ({"scheduler": "pbt"}, "scheduler is pbt, but job is protect-model and search optuna"),
        ({"change_every": 5}, "change_every is 5 and scheduler none; expected .* null"),
        ({"search": "grid"}, "trials is 16, but search is grid; expected null"),
        ({"trials": None}, "trials is None, but search is optuna"),
        ({"trials": 0}, "trials is 0; expected at least 1"),
        ({"max_original_drop": 2.0}, r"max_original_drop is 2\.0, a share"),
        ({"job": "audit-model", "scheduler": "asha"}, "rounds of audit-model say nothing"),
        ({"job": "pretrain", "objective": "pareto"}, "pareto, but job is pretrain"),
        ({"job": "protect-data"}, "job is protect-data and appropriator is null"),
        ({"job": "pretrain", "audit": "a.yaml"}, r"audit is a\.yaml, but what pretrain makes"),
    ],
)
def test_bad_sweep_is_refused_by_name_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_sweep(**values)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise AssertionError("a cluster was started")

    monkeypatch.setattr("ray.init", start)


@pytest.fixture
def job(model: str, tmp_path: Path) -> Sweep:
    base = ProtectModel(model=model, original=ORIGINAL, restricted=[RESTRICTED], output="out")
    recipe = tmp_path / "protect-model.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(base)))
    return a_sweep(recipe=str(recipe), output=str(tmp_path / "sweep"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "no-such.yaml"}, r"no-such\.yaml is no file"),
        ({"fixed": {"sophon.round": 3}}, r"sophon\.round is no field.*mean sophon\.rounds\?"),
        ({"fixed": {"sophon.rounds": 0}}, "rounds is 0; expected at least 1"),
        ({"fixed": {"sophon.query_size": 4}}, "fixed has sophon.query_size, which space sophon"),
        (
            {"search": "grid", "trials": None},
            "search is grid, but sophon.suppression_lr is a range",
        ),
        ({"audit": "no-such.yaml"}, r"no-such\.yaml is no file"),
        ({"job": "pretrain", "space": "pretraining"}, "yaml is no recipe of Pretrain: "),
        (PBT, r"space sophon sets sophon\.reinforcement_steps, which cannot change while a model"),
        (PBT | {"space": "sophon-rates", "change_every": 800}, r"but sophon\.rounds is 800"),
    ],
)
def test_what_cannot_run_is_refused_before_a_cluster_starts(
    values: dict[str, Any], message: str, job: Sweep, tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=message):
        sweep.run(dataclasses.replace(job, **values))
    assert sorted(tmp_path.iterdir()) == before


def test_another_sweep_with_the_same_output_is_refused_by_what_differs(
    job: Sweep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = sweep._whole(job, sweep._open(job))
    begin(find_run(whole, verb="sweep"))
    find_run(sweep._whole(job, sweep._open(job)), verb="sweep")  # the same goes on

    # Neither where recipes are nor how many trials run at a time decides what a sweep finds.
    copy = tmp_path / "copy.yaml"
    copy.write_text(Path(job.recipe).read_text().replace("workers: 1", "workers: 1 "))
    same = dataclasses.replace(job, recipe=str(copy), max_concurrent_trials=1)
    find_run(sweep._whole(same, sweep._open(same)), verb="sweep")

    copy.write_text(Path(job.recipe).read_text().replace("rounds: 800", "rounds: 801"))
    for other, message in (
        (dataclasses.replace(job, recipe=str(copy)), r"base\.sophon\.rounds was 800, is 801"),
        (dataclasses.replace(job, trials=17), r"sweep\.trials was 16, is 17"),
        (dataclasses.replace(job, space="sophon-rates"), r"space\.sophon\.clip_norm was 'one of"),
    ):
        with pytest.raises(UsageError, match=message):
            find_run(sweep._whole(other, sweep._open(other)), verb="sweep")


def test_a_smaller_cluster_than_the_sweep_began_on_is_refused(
    job: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    this_run = find_run(job, verb="sweep")
    node = {"Alive": True, "Resources": {"CPU": 2.0}}
    monkeypatch.setattr("ray.nodes", lambda: [node, {**node, "Alive": False}])
    assert sweep._concurrent(job, ClusterConfig(), this_run) == 2
    fewer = dataclasses.replace(job, max_concurrent_trials=1)
    assert sweep._concurrent(fewer, ClusterConfig(), this_run) == 1

    population = dataclasses.replace(job, **PBT, trials=2)
    assert sweep._concurrent(population, ClusterConfig(), this_run) == 2
    for larger in ({"trials": 3}, {"max_concurrent_trials": 1}):
        with pytest.raises(UsageError, match=r"can run at a time, .* compared .* side by side"):
            sweep._concurrent(dataclasses.replace(population, **larger), ClusterConfig(), this_run)

    monkeypatch.setattr(sweep, "has_begun", lambda _: True)
    kept = open_blobs(this_run.state)
    kept.put("concurrent.json", b"2")
    assert sweep._concurrent(fewer, ClusterConfig(), this_run) == 2
    kept.put("concurrent.json", b"3")
    with pytest.raises(UsageError, match=r"began with 3 trials at a time, but .* room for 2"):
        sweep._concurrent(job, ClusterConfig(), this_run)


def test_failure_of_tune_itself_says_where_the_sweep_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Tuner:
        def __init__(self, *_: object, **__: object) -> None: ...

        def fit(self) -> None:
            raise tune.TuneError("many lines\nno space left")

    monkeypatch.setattr(tune, "Tuner", Tuner)
    for name in tuning._ENVIRONMENT:
        monkeypatch.setenv(name, "")  # restored after the test
    with pytest.raises(JobError, match=f"no space left; its state is in {tmp_path}"):
        tuning.run_trials(
            lambda fields: None,
            param_space={},
            num_samples=1,
            search=BasicVariantGenerator(),
            scheduler=None,
            max_failures=0,
            state=parse_location(tmp_path),
            callback=tune.Callback(),
        )


def test_attacks_on_a_model_that_names_no_domains_need_some(model: str) -> None:
    with pytest.raises(UsageError, match=f"{model} was not made by protect-model, so it names no"):
        SWEPT_JOBS["audit-model"].absolute(AuditModel(protected=model, output="out"))
    given = AuditModel(protected=model, output="out", restricted=[RESTRICTED])
    assert SWEPT_JOBS["audit-model"].absolute(given).restricted == [RESTRICTED]


def test_sweep_of_which_nothing_was_measured_fails_with_the_first_reason(
    job: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_all(job: Sweep, opened: Any, this_run: Any, concurrent: int) -> None:
        del job, opened, concurrent
        failed = Trial(trial_id="t", state="failed", fields={}, began=0.0, error="no images")
        write_trial(this_run.state, failed)

    monkeypatch.setattr(sweep, "connect", lambda _: None)
    monkeypatch.setattr(sweep, "_concurrent", lambda *_: 1)
    monkeypatch.setattr(sweep, "_run_trials", fail_all)
    with pytest.raises(JobError, match=r"none of 1 trials was measured, .* because no images"):
        sweep.run(job)
