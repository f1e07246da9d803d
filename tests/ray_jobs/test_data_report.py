import json

from protection.audit.countermeasures import COUNTERMEASURES
from ray_jobs.data_report import build_report, to_markdown


def a_curve(*accuracies: float) -> list[dict[str, object]]:
    return [
        {"epoch": epoch, "loss": 1.0, "test_accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies)
    ]


CURVES = {
    "timm/small": {
        "protected": {"none": [a_curve(0.2, 0.1), a_curve(0.1, 0.2)]},
        "clean": [a_curve(0.5, 0.6), a_curve(0.6, 0.6)],
    },
    # Best at its peak, though not at its end.
    "timm/large": {
        "protected": {"none": [a_curve(0.4, 0.1, 0.1), a_curve(0.5, 0.1, 0.1)]},
        "clean": [a_curve(0.7, 0.8, 0.9), a_curve(0.7, 0.8, 0.9)],
    },
}


def test_report_leads_with_the_appropriator_of_the_highest_peak() -> None:
    report = build_report(CURVES, num_classes=8, seeds=[3, 4])
    assert report["headline"] == {
        "worst_appropriator": "timm/large",
        "worst_countermeasure": "none",
        "peak_protected_accuracy": 0.45,
        "peak_clean_accuracy": 0.9,
        "chance": 0.125,
        "num_appropriators": 2,
        "num_countermeasures": 0,
    }
    assert json.loads(json.dumps(report))["curves"] == CURVES
    lines = to_markdown(report).splitlines()
    # 12.71 (Student, one degree of freedom) times 0.0707 / sqrt(2).
    assert lines[0] == (
        "Worst case: timm/large reaches 45.0 ± 63.5 % on clean test images (peak over 3 epochs); "
        "trained on the clean images it reaches 90.0 ± 0.0 %, chance is 12.5 %."
    )
    assert "an upper bound on what early stopping could reach" in lines[1]
    assert lines[2].startswith("Tried: 2 appropriators")
    assert lines[2].endswith("No countermeasure was tried.")
    assert lines[3].startswith("Countermeasures not tried: jpeg_10, jpeg_30, ")
    assert lines[5] == "Accuracy on clean test images in %, mean over 2 seeds and 95 % interval:"
    assert lines[-2].startswith("| timm/large | none | 3 | 45.0 ± 63.5 | 10.0 ± 0.0 | 90.0")
    assert lines[-1] == (
        "| timm/small | none | 2 | 20.0 ± 0.0 | 15.0 ± 63.5 | 60.0 ± 0.0 | 60.0 ± 0.0 |"
    )


def test_report_leads_with_the_countermeasure_of_the_highest_peak_and_lists_the_untried() -> None:
    curves = {
        "timm/small": {
            "protected": {"none": [a_curve(0.1)], "jpeg_10": [a_curve(0.4)]},
            "clean": [a_curve(0.9)],
        },
        "timm/large": {
            "protected": {"none": [a_curve(0.2)], "jpeg_10": [a_curve(0.3)]},
            "clean": [a_curve(0.8)],
        },
    }
    report = build_report(curves, num_classes=10, seeds=[0])
    assert report["headline"] == {
        "worst_appropriator": "timm/small",
        "worst_countermeasure": "jpeg_10",
        "peak_protected_accuracy": 0.4,
        "peak_clean_accuracy": 0.9,
        "chance": 0.1,
        "num_appropriators": 2,
        "num_countermeasures": 1,
    }
    rows = [(row["appropriator"], row["countermeasure"]) for row in report["appropriators"]]
    assert rows == [
        ("timm/small", "jpeg_10"),
        ("timm/large", "jpeg_10"),
        ("timm/large", "none"),
        ("timm/small", "none"),
    ]
    assert set(report["not_tried"]) == set(COUNTERMEASURES) - {"none", "jpeg_10"}
    lines = to_markdown(report).splitlines()
    assert lines[0].startswith("Worst case: timm/small with jpeg_10 reaches 40.0 % on clean test")
    assert lines[2].startswith("Tried: 2 appropriators, each trained as its recipe says, on the")
    assert lines[3] == f"Countermeasures not tried: {', '.join(report['not_tried'])}."
    assert lines[-4] == "| timm/small | jpeg_10 | 1 | 40.0 | 40.0 | 90.0 | 90.0 |"
    assert lines[-1] == "| timm/small | none | 1 | 10.0 | 10.0 | 90.0 | 90.0 |"


def test_report_of_every_countermeasure_lists_none_as_untried() -> None:
    protected = {name: [a_curve(0.2)] for name in COUNTERMEASURES}
    curves = {"timm/one": {"protected": protected, "clean": [a_curve(0.5)]}}
    report = build_report(curves, num_classes=4, seeds=[0])
    assert report["not_tried"] == []
    assert "No countermeasure that Ringfence has was left out." in to_markdown(report)


def test_report_of_one_seed_has_no_interval() -> None:
    curves = {"timm/one": {"protected": {"none": [a_curve(0.2)]}, "clean": [a_curve(0.5)]}}
    shown = to_markdown(build_report(curves, num_classes=4, seeds=[0]))
    assert "reaches 20.0 % on clean test images" in shown
    assert "Tried: 1 appropriator," in shown
    assert "mean over 1 seed:" in shown
    assert "±" not in shown
