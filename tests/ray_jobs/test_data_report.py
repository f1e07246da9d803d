import json

from ray_jobs.data_report import build_report, to_markdown


def a_curve(*accuracies: float) -> list[dict[str, object]]:
    return [
        {"epoch": epoch, "loss": 1.0, "test_accuracy": accuracy}
        for epoch, accuracy in enumerate(accuracies)
    ]


CURVES = {
    "timm/small": {
        "protected": [a_curve(0.2, 0.1), a_curve(0.1, 0.2)],
        "clean": [a_curve(0.5, 0.6), a_curve(0.6, 0.6)],
    },
    # Best at its peak, though not at its end.
    "timm/large": {
        "protected": [a_curve(0.4, 0.1, 0.1), a_curve(0.5, 0.1, 0.1)],
        "clean": [a_curve(0.7, 0.8, 0.9), a_curve(0.7, 0.8, 0.9)],
    },
}


def test_report_leads_with_the_appropriator_of_the_highest_peak() -> None:
    report = build_report(CURVES, num_classes=8, seeds=[3, 4])
    assert report["headline"] == {
        "worst_appropriator": "timm/large",
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
    assert lines[4] == "Accuracy on clean test images in %, mean over 2 seeds and 95 % interval:"
    assert lines[-2].startswith("| timm/large | 3 | 45.0 ± 63.5 | 10.0 ± 0.0 | 90.0")
    assert lines[-1] == ("| timm/small | 2 | 20.0 ± 0.0 | 15.0 ± 63.5 | 60.0 ± 0.0 | 60.0 ± 0.0 |")


def test_report_of_one_seed_has_no_interval() -> None:
    curves = {"timm/one": {"protected": [a_curve(0.2)], "clean": [a_curve(0.5)]}}
    shown = to_markdown(build_report(curves, num_classes=4, seeds=[0]))
    assert "reaches 20.0 % on clean test images" in shown
    assert "Tried: 1 appropriator," in shown
    assert "mean over 1 seed:" in shown
    assert "±" not in shown
