"""What a data audit stores, and what is shown of it."""

import json

import pytest

from protection.audit.countermeasures import COUNTERMEASURES
from ray_jobs.reports.data_report import claims
from ray_jobs.reports.data_view import data_view
from ray_jobs.reports.markdown import to_markdown
from tests.ray_jobs.reports.audits import DATASET, DETECTION, curve, data_report_of

CURVES = {
    "timm/small": {
        "protected": {"none": [curve(0.2, 0.1), curve(0.1, 0.2)]},
        "clean": [curve(0.5, 0.6), curve(0.6, 0.6)],
    },
    # Best at its peak, though not at its end.
    "timm/large": {
        "protected": {"none": [curve(0.4, 0.1, 0.1), curve(0.5, 0.1, 0.1)]},
        "clean": [curve(0.7, 0.8, 0.9), curve(0.7, 0.8, 0.9)],
    },
}


def test_report_leads_with_the_appropriator_of_the_highest_peak() -> None:
    report = data_report_of(CURVES)
    assert report["headline"] == {
        "worst_appropriator": "timm/large",
        "worst_countermeasure": "none",
        "peak_protected_accuracy": 0.45,
        "peak_protected_accuracy_margin": pytest.approx(0.635, abs=1e-3),
        "peak_clean_accuracy": 0.9,
        "accuracy_cost": pytest.approx(0.45),
        "accuracy_cost_margin": pytest.approx(0.635, abs=1e-3),
        "chance": 0.125,
        "num_appropriators": 2,
        "num_countermeasures": 0,
        "detectability": 0.96,
    }
    assert data_view(report).verdict == (
        # 12.71 (Student, one degree of freedom) times 0.0707 / sqrt(2).
        "The worst case, timm/large, still reaches 45.0 ± 63.5 % on clean test images: 45.0 ± 63.5 "
        "points less than the 90.0 % that clean images teach it, within the noise; chance is "
        "12.5 %."
    )


def test_cells_hold_every_curve_and_clean_ones_are_held_once() -> None:
    report = json.loads(json.dumps(data_report_of(CURVES)))
    cell = report["cells"][0]
    assert cell["protected"]["curve"]["seeds"] == CURVES["timm/large"]["protected"]["none"]
    assert cell["protected"]["curve"]["mean"] == pytest.approx([0.45, 0.1, 0.1])
    assert cell["protected"]["final"]["mean"] == pytest.approx(0.1)
    assert cell["epochs"] == 3
    assert report["clean"]["timm/small"]["curve"]["seeds"] == CURVES["timm/small"]["clean"]
    assert report["detection"]["spectrum"] == {"balanced_accuracy": 0.96, "auc": 0.98}


def test_worst_is_the_countermeasure_of_the_highest_peak_and_the_untried_are_listed() -> None:
    curves = {
        "timm/small": {
            "protected": {"none": [curve(0.1)], "jpeg_10": [curve(0.4)]},
            "clean": [curve(0.9)],
        },
        "timm/large": {
            "protected": {"none": [curve(0.2)], "jpeg_10": [curve(0.3)]},
            "clean": [curve(0.8)],
        },
    }
    report = data_report_of(curves, seeds=[0])
    assert report["headline"]["worst_countermeasure"] == "jpeg_10"
    assert report["headline"]["num_countermeasures"] == 1
    order = [(cell["appropriator"], cell["countermeasure"]) for cell in report["cells"]]
    assert order == [
        ("timm/small", "jpeg_10"),
        ("timm/large", "jpeg_10"),
        ("timm/large", "none"),
        ("timm/small", "none"),
    ]
    assert set(report["not_tested"][:-1]) == set(COUNTERMEASURES) - {"none", "jpeg_10"}
    assert report["not_tested"][-1] == "other architectures and other ways of training"
    view = data_view(report)
    assert view.verdict.startswith("The worst case, timm/small with jpeg_10, still reaches 40.0 %")
    assert view.verdict.endswith("that clean images teach it, by one seed; chance is 12.5 %.")
    assert view.scope.startswith("Trained on the protected images under 1 countermeasure, and on")
    lines = to_markdown(view).splitlines()
    assert "| timm/small | jpeg_10 | 40.0 | +50.0 | learns less | 90.0 | 40.0 | 1 |" in lines
    assert "±" not in "".join(lines)


def test_a_protection_without_effect_has_failed() -> None:
    nothing = {"one": {"protected": {"none": [curve(0.6)] * 2}, "clean": [curve(0.5)] * 2}}
    view = data_view(data_report_of(nothing))
    assert view.outcome == "failed"
    assert "60.0 ± 0.0 % on clean test images: no less than the 50.0 % that clean" in view.verdict
    assert view.tables[0].lines[0].is_bad
    assert view.tables[0].lines[0].values[3:5] == ["-10.0 ± 0.0", "NO EFFECT"]
    assert data_view(data_report_of(CURVES)).outcome == "open"


def test_scores_say_what_share_was_protected_how_far_it_moved_and_how_it_shows() -> None:
    scores = {score.name: score for score in data_view(data_report_of(CURVES)).scores}
    assert scores["Images protected"].value == "25.0"
    assert scores["Images protected"].note == "1,250 of 5,000 by SEP"
    assert scores["Likeness"].value == "30.9"
    assert "SSIM 0.954; at most 8 of 255 levels (budget 8)" in scores["Likeness"].note
    assert scores["Detectability"].value == "96.0"
    assert "linear classifier on the spectrum (AUC 0.98)" in scores["Detectability"].note


def test_scores_of_a_foreign_dataset_leave_out_what_it_does_not_say() -> None:
    report = data_report_of(CURVES, dataset=claims({"recipe": {}}), detection=None)
    assert report["headline"]["detectability"] is None
    scores = {score.name: score.value for score in data_view(report).scores}
    assert list(scores) == ["Accuracy left, worst", "Accuracy cost", "Detectability"]
    assert scores["Detectability"] == "not measured"


def test_claims_are_what_protect_data_wrote() -> None:
    metrics = {name: DATASET[name] for name in DATASET if name.startswith(("psnr", "ssim", "max"))}
    description = {
        "variant": "SEP",
        "budget": {"epsilon_levels": 8},
        "num_images": 5000,
        "num_protected": 1250,
        "metrics": metrics,
    }
    assert claims(description) == DATASET


def test_incomplete_trainings_are_refused_by_name() -> None:
    curves = {"one": {"protected": {"jpeg_10": [curve(0.6)]}, "clean": [curve(0.5)] * 2}}
    with pytest.raises(ValueError, match=r"'one', jpeg_10, has curves of \[1\] epochs; expected 2"):
        data_report_of(curves)
    curves = {"one": {"protected": {"none": [curve(0.6)] * 2}, "clean": [curve(0.5), []]}}
    with pytest.raises(ValueError, match=r"'one', clean images, has curves of \[1, 0\] epochs"):
        data_report_of(curves, detection=DETECTION)
