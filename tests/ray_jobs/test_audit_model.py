"""A model audit's recipe, plan and cells; all but the cluster that runs them."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import yaml

from protection.audit.attacks import Attack
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.families import AttackFamily
from protection.audit.methods import AUDIT_METHODS
from protection.audit.preparations import PREPARATIONS
from protection.audit.threat_models import THREAT_MODELS, attacks_of
from protection.models import ModelConfig
from protection.schedules import SCHEDULES
from protection.sophon.adversary import OPTIMIZERS
from ray_jobs import audit_model
from ray_jobs.attack_cells import Audited, Cell, Target, cells, fine_tune_cell, to_results
from ray_jobs.audit_model import AuditModel
from ray_jobs.audited_models import resolve
from ray_jobs.cli import parse
from ray_jobs.domains import DomainConfig
from ray_jobs.errors import UsageError
from ray_jobs.model_files import describe
from ray_jobs.reporting import Row
from ray_jobs.runs import begin, find_run
from storage.commit import read_part
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, ROOT

ALL_DIGITS = DomainConfig(train="digits:train", test="digits:test")
FEW = dataclasses.replace(RESTRICTED, max_train_images=60, max_test_images=60)
MILD = AttackFamily(finetune_lrs=[0.05], batch_sizes=[32])


def a_job(model: str, output: Path, **changes: object) -> AuditModel:
    values = {
        "protected": model,
        "unprotected": model,
        "original": dataclasses.replace(ORIGINAL, max_train_images=60, max_test_images=60),
        "restricted": [FEW],
        "adversary": [MILD],
        "output": str(output),
        "epochs": 2,
        "seeds": [0],
    }
    return AuditModel(**{**values, **changes})


def planned(job: AuditModel) -> dict[Target, list[Attack]]:
    return audit_model._plan(job, resolve(job))


def test_recipes_of_before_and_of_now_are_read(tmp_path: Path) -> None:
    def read(**fields: object) -> AuditModel:
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump({"protected": "a", "output": "b", **fields}))
        return parse(["audit-model", "--config", str(path)])[1]

    before = {"methods": ["redrawn_head"], "optimizers": ["momentum"], "finetune_lrs": [0.01]}
    assert read(adversary=[before]).adversary == [AttackFamily(**before)]
    now = {"methods": ["lora"], "lora_ranks": [4, 8], "preparations": ["prune"]}
    job = read(adversary=[now], threat_model="short", benign=[{"train": "x", "test": "y"}])
    assert job.families() == [AttackFamily(**now), *THREAT_MODELS["short"]]
    # Who says nothing gets the default threat model, not one mild attack.
    assert read().families() == list(THREAT_MODELS["default"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"adversary": []}, "adversary is empty"),
        ({"benign": []}, "benign is empty"),
        ({"threat_model": "long"}, "threat_model is 'long', which names none; expected short"),
        ({"stop_hopeless_after": 0}, "stop_hopeless_after is 0; expected at least 1"),
        ({"benign_adversary": MILD}, "benign_adversary is given, but benign is null"),
        ({"threat_model": "thorough"}, "unrelated is null, but heal_unrelated is among"),
        (
            {"adversary": [AttackFamily(preparations=["heal_unrelated"])]},
            "unrelated is null, but heal_unrelated is among the preparations",
        ),
        ({"unrelated": ALL_DIGITS}, "unrelated is digits:train, but no attack uses it"),
    ],
)
def test_a_recipe_that_would_not_do_what_it_says_is_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        a_job("anywhere", Path("out"), **change)


def test_every_name_is_listed_where_recipes_are_explained(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["audit-model", "--adversary.help"])
    explained = set(re.findall(r"\w+", capsys.readouterr().out))
    for names in (AUDIT_METHODS, OPTIMIZERS, SCHEDULES, AUGMENTATIONS, PREPARATIONS):
        assert explained >= set(names)


def test_attacks_of_a_threat_model_that_do_not_fit_are_left_out(model: str, tmp_path: Path) -> None:
    job = a_job(
        model,
        tmp_path / "audit",
        adversary=None,
        threat_model="short",
        restricted=[RESTRICTED, ALL_DIGITS],
    )
    fitting, wide = planned(job).values()
    assert fitting == attacks_of(THREAT_MODELS["short"])
    kept = {one.method for one in wide}
    assert kept == {one.method for one in fitting} - {"all_layers"}
    assert len(wide) >= 8
    # What the recipe itself lists is not left out in silence.
    with pytest.raises(ValueError, match=r"'all_layers', which keeps.*of 5 classes.*has 10"):
        planned(dataclasses.replace(job, adversary=[MILD]))


def test_benign_domains_are_tried_by_their_own_adversary_or_the_first(
    model: str, tmp_path: Path
) -> None:
    more = {"benign": [ALL_DIGITS], "threat_model": "short"}
    first = AttackFamily(methods=["lora"], finetune_lrs=[0.1, 0.2])
    job = a_job(model, tmp_path / "audit", adversary=[first, MILD], **more)
    assert planned(job)[Target("benign", 0)] == first.attacks()
    other = AttackFamily(methods=["redrawn_head"])
    again = dataclasses.replace(job, benign_adversary=other)
    assert planned(again)[Target("benign", 0)] == other.attacks()
    keeps = dataclasses.replace(job, benign_adversary=MILD)
    with pytest.raises(ValueError, match="'all_layers', which keeps"):
        planned(keeps)


def test_an_original_domain_that_is_not_the_models_cannot_heal_it(
    model: str, tmp_path: Path
) -> None:
    healing = AttackFamily(preparations=["heal_original"])
    job = a_job(model, tmp_path / "audit", original=ALL_DIGITS, adversary=[healing])
    with pytest.raises(UsageError, match=r"digits:train with 10 classes, but the model has 5"):
        audit_model._check(resolve(job), planned(job))


def test_every_preparation_finds_its_images_and_every_start_is_prepared(
    model: str, tmp_path: Path
) -> None:
    family = AttackFamily(
        methods=["redrawn_head"],
        preparations=[*PREPARATIONS],
        preparation_epochs=[1],
        finetune_lrs=[0.05],
        batch_sizes=[32],
    )
    unrelated = DomainConfig(
        train="photographs:train", test="photographs:test", max_train_images=60
    )
    job = a_job(model, tmp_path / "audit", adversary=[family], unrelated=unrelated, epochs=1)
    audited, plan = resolve(job), planned(job)
    losses = {}
    for cell in cells(plan, seeds=[0]):
        (row,) = fine_tune_cell(audited, cell)
        assert set(row) == {"epoch", "loss", "test_accuracy"}
        losses.setdefault(cell.start, set()).add(row["loss"])
    # Protected and unprotected are one model here; each preparation does something else.
    assert losses["protected"] == losses["unprotected"]
    assert len(losses["scratch"]) == len(losses["protected"]) == len(PREPARATIONS)


def test_rows_are_json_also_of_a_diverged_attack_and_say_where_it_was_stopped(
    model: str, tmp_path: Path
) -> None:
    family = AttackFamily(finetune_lrs=[3e38], batch_sizes=[32])
    job = a_job(model, tmp_path / "audit", adversary=[family], epochs=5, stop_hopeless_after=2)
    cell = next(cells(planned(job), seeds=[0]))
    rows = fine_tune_cell(resolve(job), cell)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows[-1]["loss"] is None
    assert [row.get("stopped") for row in rows] == [None, True]


def test_results_have_a_curve_for_each_seed_and_name_each_domain(
    model: str, tmp_path: Path
) -> None:
    job = a_job(
        model,
        tmp_path / "audit",
        restricted=[RESTRICTED, RESTRICTED],
        benign=[ALL_DIGITS],
        benign_adversary=AttackFamily(methods=["lora"]),
        seeds=[7, 3],
    )
    audited = resolve(job)
    curves = {
        cell: [{"epoch": 0, "loss": 1.0, "test_accuracy": number / 100}]
        for number, cell in enumerate(cells(planned(job), seeds=job.seeds))
    }
    results = to_results(audited, curves, seeds=job.seeds)
    assert [(r.role, r.domain, r.attack) for r in results] == [
        ("restricted", "digits:train (5, 6, 7, 8, 9), domain 0", str(MILD.attacks()[0])),
        ("restricted", "digits:train (5, 6, 7, 8, 9), domain 1", str(MILD.attacks()[0])),
        ("benign", "digits:train", "lora sgd 0.0001 batch 130"),
    ]
    assert results[2].facts["lora_rank"] == 8
    json.dumps([result._asdict() for result in results])
    # Seeds outermost: of the first result's first start, the first cell and the tenth.
    accuracies = [curve[0]["test_accuracy"] for curve in results[0].curves["protected"]]
    assert accuracies == [0.0, 0.09]


def test_an_audit_begun_before_attacks_had_more_fields_goes_on(model: str, tmp_path: Path) -> None:
    job = a_job(model, tmp_path / "audit")
    begin(find_run(job, verb="audit-model"))
    path = tmp_path / "audit.run" / "recipe.json"
    recipe = json.loads(path.read_text())
    known = ("methods", "optimizers", "finetune_lrs", "batch_sizes", "weight_decays")
    recipe["adversary"] = [{name: recipe["adversary"][0][name] for name in known}]
    for name in ("threat_model", "unrelated", "benign", "benign_adversary", "stop_hopeless_after"):
        del recipe[name]
    path.write_text(json.dumps(recipe))
    find_run(job, verb="audit-model")
    longer = AttackFamily(finetune_lrs=[0.05], batch_sizes=[32], epochs_factors=[3.0])
    with pytest.raises(UsageError, match=r"adversary was .*epochs_factors': \[1.0\]"):
        find_run(dataclasses.replace(job, adversary=[longer]), verb="audit-model")


def test_an_audit_reports_on_all_it_ran_and_names_what_it_did_not(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole job, its cells run in this process."""

    def run_here(
        some: Iterable[Cell],
        task: Callable[[Audited, Cell], list[Row]],
        audited: Audited,
        **_: object,
    ) -> dict[Cell, list[Row]]:
        return {cell: task(audited, cell) for cell in some}

    monkeypatch.setattr(audit_model, "run_cells", run_here)
    monkeypatch.setattr(audit_model, "connect", lambda cluster: None)
    monkeypatch.setattr(audit_model, "_measure", lambda task, audited, cluster: task(audited))
    job = a_job(model, tmp_path / "audit", benign=[FEW], epochs=1)
    report = json.loads(read_part(audit_model.run(job), "report.json"))
    assert report["headline"]["num_cells"] == 1
    assert "method lora" in report["not_tested"]
    assert "method all_layers" not in report["not_tested"]


def test_recipes_declare_the_threat_models_they_speak_of() -> None:
    path = ROOT / "recipes" / "digits"
    short = parse(["audit-model", "--config", str(path / "audit-model.yaml")])[1]
    assert len(attacks_of(short.families())) >= 8
    default = parse(["audit-model", "--config", str(path / "audit-model-default.yaml")])[1]
    assert len(attacks_of(default.families())) >= 24


def test_a_weights_file_is_audited_where_the_recipe_says_what_it_is(
    model: str, tmp_path: Path
) -> None:
    (weights,) = Path(model).glob("model.*.safetensors")
    described = describe(model).config
    job = a_job(str(weights), tmp_path / "out", network=described)
    audited = resolve(job)
    assert audited.description == describe(model)._replace(config=described)
    cell = Cell(Target("restricted", 0), MILD.attacks()[0], "protected", 0)
    of_commit = resolve(a_job(model, tmp_path / "other"))
    assert fine_tune_cell(audited, cell) == fine_tune_cell(of_commit, cell)


@pytest.mark.parametrize("missing", ["unprotected", "original", "restricted"])
def test_a_weights_file_names_nothing_that_the_recipe_leaves_out(
    missing: str, model: str, tmp_path: Path
) -> None:
    (weights,) = Path(model).glob("model.*.safetensors")
    network = describe(model).config
    job = a_job(str(weights), tmp_path / "out", network=network, **{missing: None})
    with pytest.raises(UsageError, match=f"{weights.name} was not made by protect-model"):
        resolve(job)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protected": "weights.safetensors"}, "protected is weights.safetensors, which does not"),
        (
            {"network": ModelConfig(architecture="timm/resnet18", image_size=8)},
            "network is given, but protected is .*, a committed location that describes itself",
        ),
    ],
)
def test_a_model_described_twice_or_not_at_all_is_refused(
    change: dict[str, object], message: str, model: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        a_job(model, tmp_path / "out", **change)
