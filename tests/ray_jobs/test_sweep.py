"""A small sweep on a real cluster, through a driver that dies and trials that fail."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray import tune

from protection.audit.families import AttackFamily
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from ray_jobs import sweep
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.errors import UsageError
from ray_jobs.protect_model import ProtectModel
from ray_jobs.quick_audit import QuickAudit
from ray_jobs.recipes import read_recipe, to_plain
from ray_jobs.sweep_progress import SweepProgress
from ray_jobs.sweep_recipe import Sweep
from ray_jobs.sweep_records import read_trials
from storage.commit import is_committed, read_manifest, read_part
from storage.location import parse_location
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

# The second batch size is more than there are images, which the job finds out when it begins.
SPACE = {
    "sophon.adversary.0.batch_sizes.0": tune.choice([16, 5000]),
    "sophon.suppression_lr": tune.choice([1e-4, 1e-3]),
}


@pytest.fixture
def job(model: str, tmp_path: Path) -> Sweep:
    base = ProtectModel(
        model=model,
        original=ORIGINAL,
        restricted=[RESTRICTED],
        output=str(tmp_path / "unused"),
        sophon=SophonConfig(
            rounds=2,
            episode_length=2,
            query_size=8,
            adversary=[StrategyFamily(finetune_lrs=[0.01], batch_sizes=[16])],
            reinforcement_batch_size=32,
            max_original_drop=1.0,
        ),
        cluster=GroupedClusterConfig(workers=1),
    )
    recipe = tmp_path / "protect-model.yaml"
    recipe.write_text(yaml.safe_dump(to_plain(base)))
    return Sweep(
        job="protect-model",
        recipe=str(recipe),
        space=f"{__name__}:SPACE",
        fixed={"sophon.query_size": 4},
        output=str(tmp_path / "sweep"),
        search="grid",
        trials=None,
        max_original_drop=1.0,
        quick_audit=QuickAudit(
            adversary=[AttackFamily(finetune_lrs=[0.05], batch_sizes=[64])], epochs=1
        ),
        max_concurrent_trials=1,  # when the driver dies, no other trial is at work
    )


def die_after_the_first_measured_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SweepProgress, "on_trial_complete", die)


def test_sweep_goes_on_where_its_driver_died_and_failing_trials_do_not_end_it(
    cluster: str, job: Sweep, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Another cluster may run on this machine.
    monkeypatch.setenv("RAY_ADDRESS", cluster)
    state = parse_location(job.output).sibling(".run")
    with monkeypatch.context() as patch:
        die_after_the_first_measured_trial(patch)
        with pytest.raises(KeyboardInterrupt):
            sweep.run(job)
    before = read_trials(state)
    (measured,) = (trial for trial in before if trial.state == "finished")
    assert len(before) < 4
    assert not is_committed(job.output)

    with pytest.raises(UsageError, match=r"sweep\.seed was 0, is 1"):
        sweep.run(dataclasses.replace(job, seed=1))
    Path(job.recipe).write_text(Path(job.recipe).read_text().replace("rounds: 2", "rounds: 3"))
    with pytest.raises(UsageError, match=r"base\.sophon\.rounds was 2, is 3"):
        sweep.run(job)
    Path(job.recipe).write_text(Path(job.recipe).read_text().replace("rounds: 3", "rounds: 2"))

    with caplog.at_level("INFO", logger="ray_jobs"):
        assert sweep.run(job) == job.output
    report = json.loads(read_part(job.output, "sweep.json"))
    states = [trial["state"] for trial in report["trials"]]
    assert states == ["finished", "finished", "failed", "failed"]
    assert dataclasses.asdict(measured) in report["trials"]  # it was not run again
    assert_finished(report["trials"][:2], job)
    for trial in report["trials"][2:]:
        assert "5000 support and 4 query images" in trial["error"]
    assert_winner_runs(report, job)
    assert "sweep 4/4" in caplog.text
    assert "| failed: a step draws 5000" in read_part(job.output, "sweep.md").decode()


def assert_finished(trials: list[dict[str, Any]], job: Sweep) -> None:
    assert trials[0]["score"] <= trials[1]["score"]
    assert {trial["fields"]["sophon.suppression_lr"] for trial in trials} == {1e-4, 1e-3}
    for trial in trials:
        made = read_manifest(trial["location"])
        assert made.description["recipe"]["sophon"]["query_size"] == 4
        metrics: Any = made.description["metrics"]
        drop = metrics["unprotected_validation_accuracy"] - metrics["protected_validation_accuracy"]
        assert trial["metrics"]["drop"] == pytest.approx(drop)
        assert trial["score"] == trial["metrics"]["gain"]
        assert trial["metrics"]["worst_attack"] == "all_layers sgd 0.05 batch 64"
        seconds = trial["seconds"]
        parts = seconds["starting"] + seconds["rounds"] + seconds["ending"] + seconds["measuring"]
        assert parts == pytest.approx(seconds["total"])


def assert_winner_runs(report: dict[str, Any], job: Sweep) -> None:
    path = Path(job.output).parent / "winner.yaml"
    path.write_bytes(read_part(job.output, "winner.yaml"))
    winner = read_recipe(path, ProtectModel)
    fields = report["trials"][0]["fields"]
    assert winner.sophon.suppression_lr == fields["sophon.suppression_lr"]
    assert winner.sophon.adversary[0].batch_sizes == [16]
    assert winner.sophon.query_size == 4
    assert not is_committed(winner.output)
