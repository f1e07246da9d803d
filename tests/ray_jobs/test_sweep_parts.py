"""The parts of a sweep that need no cluster: spaces, ranking, what trials are judged by, pages."""

import dataclasses
import functools
import io
import itertools
import math
import pickle
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray import tune

from protection.audit.families import AttackFamily
from protection.training import TrainingConfig
from ray_jobs import quick_audit, sweep_trials, swept_jobs
from ray_jobs.cluster import ClusterConfig
from ray_jobs.errors import JobError, UsageError
from ray_jobs.model_files import describe
from ray_jobs.protect_model import ProtectModel
from ray_jobs.quick_audit import Attacked, QuickAudit, QuickCell
from ray_jobs.recipes import recipe_from, to_plain
from ray_jobs.sweep_charts import field_importance
from ray_jobs.sweep_progress import SweepProgress
from ray_jobs.sweep_recipe import Sweep
from ray_jobs.sweep_records import (
    Trial,
    constrained,
    pareto_set,
    ranked,
    read_trials,
    write_trial,
)
from ray_jobs.sweep_report import sweep_table
from ray_jobs.sweep_space import as_grid, as_text, check_space, find_space, own_values, with_values
from ray_jobs.swept_jobs import SWEPT_JOBS, Appropriation, appropriate_once
from ray_jobs.tuning import concurrent_trials, searcher
from storage.location import Location, parse_location
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, TINY
from tune_spaces import SPACES

JOB = ProtectModel(model="m", original=ORIGINAL, restricted=[RESTRICTED], output="out")
OWN_SPACE = {"sophon.rounds": tune.randint(1, 4)}
BAD_SPACE = {"sophon.rounds": 3}


def a_trial(number: int, **values: Any) -> Trial:
    return Trial(
        **{"trial_id": f"t{number}", "state": "finished", "fields": {}, "began": number} | values
    )


def a_measured(number: int, gain: float, drop: float = 0.0, **fields: Any) -> Trial:
    metrics = {"gain": gain, "drop": drop}
    score = constrained(gain, drop=drop, limit=0.02)
    return a_trial(number, metrics=metrics, score=score, fields=fields, seconds={"total": 60.0})


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("sophn", None, r"space is 'sophn'.*one of sophon, .*did you mean sophon\?"),
        ("sophon", ["sophon.supression_lr"], r"did you mean sophon\.suppression_lr\?"),
        ("tests.no_such:SPACE", None, "cannot be imported"),
        ("tests.ray_jobs.test_sweep_parts:NO", None, "cannot be imported"),
        ("tests.ray_jobs.test_sweep_parts:BAD_SPACE", None, "is no search space"),
    ],
)
def test_bad_space_is_refused_by_name(name: str, fields: list[str] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_space("protect-model", name, fields=fields)


def test_a_users_own_space_and_a_part_of_one() -> None:
    assert find_space("protect-model", f"{__name__}:OWN_SPACE") is not OWN_SPACE
    assert find_space("protect-model", f"{__name__}:OWN_SPACE") == OWN_SPACE
    some = find_space("protect-model", "sophon", fields=["sophon.query_size"])
    assert list(some) == ["sophon.query_size"]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"sophon.round": tune.randint(1, 3)}, r"sophon\.round is no field.*mean sophon\.rounds\?"),
        ({"sophon.rounds": tune.randint(0, 3)}, r"sophon\.rounds = 0.*rounds is 0"),
        ({"sophon.suppression_lr": tune.uniform(0.1, 2)}, r"suppression_lr = 2.*between 0 and 1"),
        ({"sophon.rounds": tune.choice(["a"])}, r"sophon\.rounds = 'a'"),
        ({"sophon.rounds": tune.sample_from(lambda: 3)}, r"expected tune\.choice, or a range"),
    ],
)
def test_space_that_the_recipe_cannot_follow_is_refused(space: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_space(JOB, space)


def test_values_are_set_by_path_in_lists_too_and_the_recipe_stays() -> None:
    before = to_plain(JOB)
    job = with_values(
        JOB,
        {
            "sophon.adversary.0.finetune_lrs.0": 0.5,
            "restricted.0.max_train_images": 7,
            "sophon.clip_norm": None,
            "sophon.rounds": torch.tensor(3),  # numbers of libraries become plain ones
        },
    )
    assert job.sophon.adversary[0].finetune_lrs == [0.5]
    assert job.restricted[0].max_train_images == 7
    assert job.sophon.clip_norm is None
    assert type(job.sophon.rounds) is int
    assert to_plain(JOB) == before


def test_a_recipe_comes_back_from_yaml_as_it_was() -> None:
    changed = with_values(JOB, {"sophon.suppression_lr": 1.23e-5, "sophon.clip_norm": None})
    text = yaml.safe_dump(to_plain(changed))
    assert recipe_from(yaml.safe_load(text), ProtectModel) == changed


def test_grid_takes_choices_and_refuses_ranges() -> None:
    grid = as_grid({"sophon.query_size": tune.choice([10, 20])})
    assert grid == {"sophon.query_size": {"grid_search": [10, 20]}}
    with pytest.raises(UsageError, match=r"sophon\.rounds is a range \(1 to 3\)"):
        as_grid(OWN_SPACE)


def test_space_as_a_person_reads_it() -> None:
    assert as_text(tune.loguniform(1e-5, 0.1)) == "1e-05 to 0.1, logarithmic"
    assert as_text(tune.choice([0.5, None])) == "one of 0.5, None"


shares = st.floats(-1, 1)


@given(st.lists(st.tuples(shares, st.floats(-0.1, 1)), min_size=1, max_size=12))
def test_what_is_within_the_limit_ranks_before_all_that_is_not(
    measured: list[tuple[float, float]],
) -> None:
    trials = [a_measured(n, gain, drop) for n, (gain, drop) in enumerate(measured)]
    order = ranked(trials)
    within = [trial for trial in order if trial.metrics["drop"] <= 0.02]
    assert order[: len(within)] == within
    gains = [trial.metrics["gain"] for trial in within]
    drops = [trial.metrics["drop"] for trial in order[len(within) :]]
    assert gains == sorted(gains)
    # Adding 1 rounds: drops that differ by less than that count as equal.
    assert all(a <= b + 1e-15 for a, b in itertools.pairwise(drops))


def test_stopped_and_failed_trials_rank_last() -> None:
    trials = [
        a_trial(1, state="failed"),
        a_trial(2, state="stopped"),
        a_measured(3, 0.3, 0.9),
        a_measured(4, 0.2),
    ]
    assert [trial.trial_id for trial in ranked(trials)] == ["t4", "t3", "t2", "t1"]


@given(st.lists(st.tuples(shares, shares), min_size=1, max_size=12))
def test_pareto_set_is_what_nothing_beats(points: list[tuple[float, float]]) -> None:
    trials = [a_measured(n, gain, drop) for n, (drop, gain) in enumerate(points)]
    found = {trial.trial_id for trial in pareto_set(trials, ("drop", "gain"))}
    for n, (drop, gain) in enumerate(points):
        is_beaten = any(d <= drop and g <= gain and (d, g) != (drop, gain) for d, g in points)
        assert (f"t{n}" in found) != is_beaten


def test_records_come_back_in_the_order_of_their_beginnings(location: Location) -> None:
    trials = [a_measured(2, 0.1, a=1.5), a_trial(1, state="failed", error="no")]
    for trial in trials:
        write_trial(location, trial)
    assert read_trials(location) == trials[::-1]


@pytest.mark.parametrize(
    ("state", "reported", "kept"),
    [
        ("running", [{"score": 2.0, "gain": 1.0, "drop": 1.0}], "failed"),
        ("failed", [{"score": 2.0, "gain": 1.0, "drop": 1.0}], "failed"),
        ("finished", [{"score": 0.1, "gain": 0.1, "drop": 0.0}], "finished"),
    ],
)
def test_trial_goes_on_by_what_its_record_says(
    state: str, reported: list[Any], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, seen = parse_location(tmp_path), []
    write_trial(location, dataclasses.replace(a_measured(1, 0.1), state=state))
    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t1"))
    monkeypatch.setattr(tune, "report", seen.append)
    plan: Any = SimpleNamespace(state=location, job="protect-model", is_population=False)
    monkeypatch.setattr(sweep_trials, "carry_out", fail)
    sweep_trials.run_trial(plan, {})
    assert seen == reported
    assert [trial.state for trial in read_trials(location)] == [kept]


def test_trial_that_the_scheduler_stopped_stays_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = parse_location(tmp_path)
    write_trial(location, a_trial(1, state="running"))

    def come_down(*_: Any) -> Trial:
        write_trial(location, a_trial(1, state="stopped"))
        return fail()

    monkeypatch.setattr(tune, "get_context", lambda: SimpleNamespace(get_trial_id=lambda: "t1"))
    monkeypatch.setattr(sweep_trials, "carry_out", come_down)
    plan: Any = SimpleNamespace(state=location, job="protect-model", is_population=False)
    sweep_trials.run_trial(plan, {})
    assert read_trials(location) == [a_trial(1, state="stopped")]


def fail(*_: Any) -> Trial:
    raise JobError("its workers were lost")


def a_progress(state: Location) -> SweepProgress:
    job = Sweep(job="protect-model", recipe="r.yaml", space="sophon", output="out")
    return SweepProgress(
        state,
        shown=("gain", "drop"),
        num_trials=5,
        concurrent=2,
        table_of=functools.partial(sweep_table, job),
    )


def test_a_terminal_shows_all_trials_the_best_and_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = parse_location(tmp_path)
    trials = [a_measured(1, -0.05, 0.01, a=1.5), a_measured(2, 0.2, 0.0, a=2.5)]
    for trial in [*trials, a_trial(3, state="running", fields={"a": 3.5})]:
        write_trial(state, trial)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    progress = pickle.loads(pickle.dumps(a_progress(state)))  # as Tune keeps it
    progress.setup()
    progress.on_step_end(0, [])
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    rows = [line.split() for line in drawn.splitlines()]
    assert [row[0] for row in rows if row and row[0][:1] == "t"] == ["trial", "t1", "t2", "t3"]
    assert "sweep 2/5" in drawn
    assert "best gain -5.0 % drop 1.0 %  eta 90 s" in drawn
    length = terminal.tell()
    progress.on_step_end(1, [])  # too soon to draw again
    assert terminal.tell() == length
    progress.on_experiment_end([])


def test_progress_completes_records_and_says_what_is_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = parse_location(tmp_path)
    write_trial(state, a_measured(1, -0.05, 0.01))
    write_trial(state, a_trial(2, state="running"))
    progress = a_progress(state)
    ended = SimpleNamespace(config={"a": 1}, get_error=lambda: "Traceback\n  it was lost\n")
    with caplog.at_level("INFO", logger="ray_jobs"):
        ended.trial_id = "t2"
        progress.on_trial_complete(0, [], ended)
        ended.trial_id = "t3"
        progress.on_trial_error(0, [], ended)
    states = {trial.trial_id: trial.state for trial in read_trials(state)}
    assert states == {"t1": "finished", "t2": "stopped", "t3": "failed"}
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0].startswith("sweep 2/5  t2  stopped  best gain -5.0 % drop 1.0 %")
    assert lines[1].startswith("sweep 3/5  t3  failed (it was lost)  best gain -5.0 %")


@pytest.mark.parametrize(
    ("nodes", "cluster", "expected"),
    [
        ([{"CPU": 2}], ClusterConfig(workers=1), 2),
        ([{"CPU": 2}], ClusterConfig(workers=2), 1),
        ([{"CPU": 2}], ClusterConfig(workers=(1, 4)), 1),
        ([{"CPU": 3}, {"CPU": 3}], ClusterConfig(workers=1, cpus_per_worker=2), 2),
        ([{"CPU": 8, "GPU": 1}], ClusterConfig(workers=2, gpus_per_worker=0.5), 1),
        ([{"CPU": 8}, {"CPU": 2, "GPU": 4}], ClusterConfig(gpus_per_worker=1), 2),
    ],
)
def test_as_many_trials_at_a_time_as_the_machines_have_room_for(
    nodes: list[dict[str, float]], cluster: ClusterConfig, expected: int
) -> None:
    assert concurrent_trials(nodes, cluster) == expected


@pytest.mark.parametrize("name", ["random", "grid", "optuna"])
def test_no_search_begins_more_trials_than_there_is_room_for(name: str) -> None:
    space = {"sophon.query_size": tune.choice([10, 20])}
    search, param_space = searcher(
        name, space, first=None, metrics=["score"], num_trials=4, concurrent=3, seed=0
    )
    assert search.max_concurrent == 3
    assert list(param_space) == list(space)


@pytest.mark.parametrize("name", ["random", "optuna"])
def test_the_recipe_as_it_is_is_tried_first(name: str) -> None:
    space = SPACES["protect-model"]["sophon-rates"]
    own = own_values(JOB, space)
    assert own == {
        "sophon.suppression_lr": JOB.sophon.suppression_lr,
        "sophon.reinforcement_lr": JOB.sophon.reinforcement_lr,
    }
    search, _ = searcher(
        name, space, first=own, metrics=["score"], num_trials=4, concurrent=3, seed=0
    )
    search.set_search_properties("score", "min", dict(space))
    if name == "optuna":
        assert search.suggest("a trial") == own
    else:  # which makes trials of a registered trainable only
        assert search._points_to_evaluate == [own]


@pytest.mark.parametrize(
    ("space", "own"),
    [
        ({"sophon.query_size": tune.choice([20, 40])}, {"sophon.query_size": 20}),
        ({"sophon.query_size": tune.choice([10, 40])}, None),
        ({"sophon.clip_norm": tune.uniform(0.6, 1)}, None),
        ({"sophon.clip_norm": tune.uniform(0.4, 1)}, {"sophon.clip_norm": 0.5}),
        ({"sophon.adversary.0.optimizers.0": tune.choice(["sgd"])}, "sgd"),
        ({"sophon.rounds": tune.randint(1, 10)}, None),
    ],
)
def test_a_recipe_that_the_space_would_not_try_is_not_tried_first(space: Any, own: Any) -> None:
    expected = dict.fromkeys(space, own) if own == "sgd" else own
    assert own_values(JOB, space) == expected


def test_a_job_that_no_machine_has_room_for_is_refused() -> None:
    # 6 CPUs in all, but no worker of 4 fits twice.
    with pytest.raises(UsageError, match=r"cluster\.workers is 2 of 4 CPUs each.*has room for 1"):
        concurrent_trials([{"CPU": 6}], ClusterConfig(workers=2, cpus_per_worker=4))


def test_quick_audit_reads_validation_images_and_never_test_images(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attacked = Attacked(model, describe(model), (RESTRICTED,), 2, False)
    seen: list[int] = []
    real = quick_audit.fine_tune

    def spy(*arguments: Any, **options: Any) -> Any:
        seen.append(len(arguments[3]))
        return real(*arguments, **options)

    monkeypatch.setattr(quick_audit, "fine_tune", spy)
    strategy = AttackFamily(finetune_lrs=[0.05], batch_sizes=[32]).attacks()[0]
    given_weights, from_scratch = (
        quick_audit.fine_tune_quickly(attacked, QuickCell(0, strategy, 0, scratch))
        for scratch in (None, "word")
    )
    domain = quick_audit.open_domain(RESTRICTED, image_size=8)
    assert seen == [len(domain.validation)] * 2 != [len(domain.test)] * 2
    assert [row["epoch"] for row in given_weights] == [0, 1]
    assert given_weights != from_scratch


def test_the_attack_that_gains_most_counts_over_the_mean_of_seeds_and_epochs(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    audit = QuickAudit(adversary=[AttackFamily(finetune_lrs=[0.1, 0.2])], epochs=1, seeds=[0, 1])
    reached = {(0.1, 0): 0.5, (0.1, 1): 0.7, (0.2, 0): 0.9, (0.2, 1): 0.6}
    places: list[Any] = []

    def of(cell: QuickCell) -> tuple[float, int]:
        return cell.attack.finetune_lr, cell.seed

    def run_cells(
        cells: list[QuickCell], *_: Any, this_run: Any, **__: Any
    ) -> dict[QuickCell, Any]:
        places.append(this_run)
        return {
            cell: [{"accuracy": 0.1}, {"accuracy": 0.3}]
            if cell.scratch
            else [{"accuracy": reached[of(cell)] - 0.1}, {"accuracy": reached[of(cell)] + 0.1}]
            for cell in cells
        }

    monkeypatch.setattr(quick_audit, "run_cells", run_cells)
    own, shared = (quick_audit.Run(None, None, tmp_path / name, {}) for name in ("own", "shared"))  # type: ignore[arg-type]
    gains = quick_audit.transfer_gains(
        Attacked(model, describe(model), (RESTRICTED,), 1, False),
        audit,
        cluster=ClusterConfig(),
        own=own,
        shared=shared,
    )
    assert list(gains) == ["all_layers sgd 0.2 batch 130", "all_layers sgd 0.1 batch 130"]
    assert list(gains.values()) == pytest.approx([0.55, 0.4])
    assert places == [shared, own]


def test_networks_from_scratch_are_shared_only_where_they_are_the_same(model: str) -> None:
    attacked = Attacked(model, describe(model), (RESTRICTED,), 2, False)
    other = attacked._replace(model="another")
    assert quick_audit._fingerprint(attacked) == quick_audit._fingerprint(other)
    longer = attacked._replace(epochs=3)
    assert quick_audit._fingerprint(attacked) != quick_audit._fingerprint(longer)


def test_appropriator_is_measured_on_clean_images_it_was_not_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Any] = []
    real = swept_jobs.train

    def spy(state: Any, images: Any, validation: Any, **options: Any) -> Any:
        seen.extend((images, validation))
        return real(state, images, validation, **options)

    monkeypatch.setattr(swept_jobs, "train", spy)
    images = swept_jobs.ImageSetConfig(source="digits:train")
    cell = Appropriation("digits:train", images, TINY, TrainingConfig(epochs=1, batch_size=64))
    (row,) = appropriate_once(False, cell)
    whole = swept_jobs.open_set(images, image_size=8)
    trained, held_out = seen
    assert len(trained) + len(held_out) == len(whole)
    assert 0 < row["accuracy"] < 1


def test_scores_fall_where_things_get_better() -> None:
    scores = {
        "protect-model": ({"gain": -0.1, "drop": 0.0}, {"gain": 0.1, "drop": 0.0}),
        "protect-data": ({"appropriator_accuracy": 0.2}, {"appropriator_accuracy": 0.6}),
        "pretrain": ({"validation_accuracy": 0.9}, {"validation_accuracy": 0.3}),
        "audit-model": ({"gain": 0.2}, {"gain": -0.2}),
    }
    assert set(scores) == set(SWEPT_JOBS)
    for job, (better, worse) in scores.items():
        assert SWEPT_JOBS[job].score(better, 0.02) < SWEPT_JOBS[job].score(worse, 0.02)
    tempting = {"gain": -1.0, "drop": 0.03}
    assert SWEPT_JOBS["protect-model"].score(tempting, 0.02) == pytest.approx(1.03)


def test_forecast_of_a_round() -> None:
    rounds = SWEPT_JOBS["protect-model"].rounds
    assert rounds is not None
    assert rounds.number(JOB) == 800
    row = {"finetuned_accuracy": 0.3, "original_drop": 0.0}
    assert rounds.progress(row, 0.02) == 0.3
    assert rounds.progress({**row, "original_drop": 0.5}, 0.02) == 1.5
    assert rounds.progress({**row, "finetuned_accuracy": None}, 0.02) is None


def test_importance_finds_the_field_that_orders_the_scores() -> None:
    trials = [
        a_measured(n, n / 10, rate=10.0**n, noise=(n * 7) % 5, word="ab"[n // 4], same=1)
        for n in range(8)
    ]
    found = field_importance(trials)
    assert found["rate"] == pytest.approx(1)
    assert found["noise"] < 0.6
    # Two halves of 8 ranks: between them lies 16 of the variance 21 / 4 ... as the root of a share.
    assert found["word"] == pytest.approx(math.sqrt(4 / (63 / 12)))
    assert found["same"] == 0
    assert next(iter(found)) == "rate"
    assert field_importance(trials[:2]) == {}
