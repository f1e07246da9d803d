"""What a sweep publishes: every trial, the recipe of the best, and a page that needs nothing."""

import dataclasses
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from ray import tune

from ray_jobs.pretrain import Pretrain
from ray_jobs.protect_model import ProtectModel
from ray_jobs.recipes import recipe_from
from ray_jobs.runs import begin, find_run
from ray_jobs.sweep_recipe import Sweep
from ray_jobs.sweep_records import Trial, constrained, ranked
from ray_jobs.sweep_report import commit_sweep
from ray_jobs.sweep_space import with_values
from storage.commit import read_manifest, read_part
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, TINY

SPACE = {
    "sophon.suppression_lr": tune.loguniform(1e-5, 1e-3),
    "sophon.suppression_loss": tune.choice(["inverse_cross_entropy", "kl_to_uniform"]),
}
MEASURED = [(0.02, 0.01), (-0.05, 0.015), (-0.2, 0.4), (-0.02, 0.0), (0.1, 0.3)]


def measured_trials() -> list[Trial]:
    return [
        Trial(
            trial_id=f"t{number}",
            state="finished",
            fields={
                "sophon.suppression_lr": 10.0 ** -(3 + number / 4),
                "sophon.suppression_loss": "kl_to_uniform"
                if number % 2
                else "inverse_cross_entropy",
            },
            began=float(number),
            metrics={"gain": gain, "drop": drop, "worst_attack": "sgd"},
            score=constrained(gain, drop=drop, limit=0.02),
            seconds={"total": 30.0},
            location=f"/models/t{number}",
        )
        for number, (gain, drop) in enumerate(MEASURED)
    ]


def failed_trial() -> Trial:
    return dataclasses.replace(
        measured_trials()[0],
        trial_id="t9",
        state="failed",
        metrics={},
        score=None,
        seconds={},
        error="a loss | was <not> finite",
    )


@pytest.fixture
def job(tmp_path: Path) -> Sweep:
    return Sweep(
        job="protect-model", recipe="r.yaml", space="sophon", output=str(tmp_path / "sweep")
    )


@pytest.fixture
def published(job: Sweep) -> dict[str, str]:
    base = ProtectModel(model="m", original=ORIGINAL, restricted=[RESTRICTED], output="out")
    trials = ranked([*measured_trials(), failed_trial()])
    this_run = find_run(job, verb="sweep")
    begin(this_run)
    winner = with_values(base, {**trials[0].fields, "output": f"{job.output}/winner"})
    commit_sweep(
        job, this_run, trials, SPACE, own=trials[2].fields, winner=winner, audit="/audits/a"
    )
    names = ("sweep.json", "sweep.md", "sweep.html", "winner.yaml")
    return {name: read_part(job.output, name).decode() for name in names}


def test_winner_is_within_the_limit_and_its_recipe_runs_as_it_is(
    published: dict[str, str], job: Sweep
) -> None:
    report = json.loads(published["sweep.json"])
    assert report["unchanged"] == "t0"
    assert report["winner"] == "t1"  # t2 gains less, but costs 40 points of original accuracy
    assert report["pareto_set"] == ["t3", "t1", "t2"]
    assert [trial["trial_id"] for trial in report["trials"]] == ["t1", "t3", "t0", "t4", "t2", "t9"]
    assert published["winner.yaml"].splitlines()[0] == (
        "# ringfence protect-model --config winner.yaml"
    )
    winner = recipe_from(yaml.safe_load(published["winner.yaml"]), ProtectModel)
    assert winner.sophon.suppression_lr == 10.0 ** -(3 + 1 / 4)
    assert winner.sophon.suppression_loss == "kl_to_uniform"
    assert winner.restricted == [RESTRICTED]
    manifest = read_manifest(job.output)
    assert manifest.kind == "sweep"
    assert manifest.description["metrics"] == {"num_trials": 6, "gain": -0.05, "drop": 0.015}


def test_table_has_every_trial_and_says_why_one_failed(published: dict[str, str]) -> None:
    text = published["sweep.md"]
    assert "6 trials of protect-model: 5 finished, 1 failed." in text
    assert "The best on validation images is t1: gain -5.0 %, drop 1.5 %." in text
    assert "The recipe as it was is t0: gain 2.0 %, drop 1.0 %." in text
    assert "Its audit on test images is /audits/a." in text
    rows = [line for line in text.splitlines() if line.startswith("| t")]
    assert len({row.count("|") for row in rows}) == 1  # a bar in a message would add a column
    assert len(rows) == 1 + 6
    assert "failed: a loss / was <not> finite" in rows[-1]
    assert "NONE" not in text


def test_page_needs_nothing_from_elsewhere_and_its_pictures_are_whole(
    published: dict[str, str],
) -> None:
    page = published["sweep.html"]
    assert not re.search(r"<script|<link|<img|src=|@import", page)
    links = set(re.findall(r'https?://[^"< ]+', page))
    assert links == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names of XML
    assert "a loss | was &lt;not&gt; finite" in page
    pictures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(pictures) == 1 + len(SPACE) + 1  # trade, slices, importance
    for picture in pictures:
        ElementTree.fromstring(picture)
    assert "sophon.suppression_loss" in page


def test_sweep_in_which_nothing_kept_the_accuracy_says_so(tmp_path: Path) -> None:
    job = Sweep(
        job="protect-model", recipe="r.yaml", space="sophon", output=str(tmp_path / "sweep")
    )
    trials = [t for t in measured_trials() if t.metrics["drop"] > 0.02]
    base = ProtectModel(model="m", original=ORIGINAL, restricted=[RESTRICTED], output="out")
    this_run = find_run(job, verb="sweep")
    commit_sweep(job, this_run, ranked(trials), SPACE, own=None, winner=base, audit=None)
    text = read_part(job.output, "sweep.md").decode()
    assert "NONE kept the original accuracy within 2.0 %" in text
    assert "best on validation images is t4" in text


def test_page_of_a_job_with_one_metric_has_no_trade(tmp_path: Path) -> None:
    job = Sweep(job="pretrain", recipe="r.yaml", space="pretraining", output=str(tmp_path / "s"))
    base = Pretrain(model=TINY, original=ORIGINAL, output="out")
    trial = dataclasses.replace(
        measured_trials()[0],
        fields={"training.learning_rate": 0.1},
        metrics={"validation_accuracy": 0.9},
        score=-0.9,
    )
    space = {"training.learning_rate": tune.loguniform(1e-3, 0.5)}
    commit_sweep(
        job, find_run(job, verb="sweep"), [trial], space, own=trial.fields, winner=base, audit=None
    )
    page = read_part(job.output, "sweep.html").decode()
    assert page.count("<svg") == 1
    assert "That is the recipe as it was: nothing that was tried is better." in page
    assert "validation_accuracy 90.0 %" in page
