from ray_jobs.audit_report import AttackResult, build_report, to_markdown


def a_result(attack: str, **accuracies: list[float]) -> AttackResult:
    curves = {
        start: [[{"epoch": 0, "loss": 1.0, "test_accuracy": value}] for value in values]
        for start, values in accuracies.items()
    }
    return AttackResult(attack, "restricted", "digits:train", {}, curves)


def a_report(worst: float) -> dict[str, object]:
    return build_report(
        [
            a_result("mild", protected=[0.1, 0.2], unprotected=[0.8, 0.8], scratch=[0.3, 0.3]),
            a_result(
                "strong", protected=[worst, worst], unprotected=[0.9, 0.9], scratch=[0.5, 0.5]
            ),
        ],
        original={"protected": 0.93, "unprotected": 0.95},
        epochs=20,
        seeds=[0, 1],
        not_tested=["method lora"],
    )


def test_report_leads_with_the_worst_cell_and_says_that_it_did_not_hold() -> None:
    report = a_report(0.6)
    assert report["headline"]["worst_cell"] == "strong"
    assert (report["headline"]["num_cells_held"], report["headline"]["num_cells"]) == (1, 2)
    lines = to_markdown(report).splitlines()
    assert lines[0] == (
        "The protection DID NOT HOLD: 1 of 2 strategies do better from it than from scratch."
    )
    assert lines[1] == "Worst case: +10.0 points over from-scratch, by strong."
    assert lines[2] == "Original accuracy: 95.0 % unprotected, 93.0 % protected (-2.0 points)."
    assert lines[-2].startswith("| strong | 60.0")
    # 12.71 (Student, one degree of freedom) times 0.0707 / sqrt(2).
    assert lines[-1] == "| mild | 15.0 ± 63.5 | 30.0 ± 0.0 | 80.0 ± 0.0 | -15.0 ± 63.5 | yes |"


def test_report_says_held_only_where_every_cell_held() -> None:
    assert "The protection HELD under every strategy tried." in to_markdown(a_report(0.4))
