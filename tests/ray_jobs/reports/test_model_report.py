"""What a model audit stores, and what is shown of it."""

import json

import pytest

from ray_jobs.reports.markdown import to_markdown
from ray_jobs.reports.model_report import BENIGN
from ray_jobs.reports.model_view import model_view
from tests.ray_jobs.reports.audits import attack, curve, model_report, two_attacks


def test_report_leads_with_the_worst_attack_and_says_that_the_protection_did_not_hold() -> None:
    report = two_attacks(0.6)
    headline = report["headline"]
    assert (headline["worst_attack"], headline["worst_domain"]) == ("strong", "MNIST")
    assert headline["worst_transfer_gain"] == pytest.approx(0.1)
    assert (headline["num_cells_held"], headline["num_cells"]) == (1, 2)
    assert headline["original_accuracy_drop"] == pytest.approx(0.02)
    assert [cell["attack"] for cell in report["cells"]] == ["strong", "mild"]
    view = model_view(report)
    assert view.outcome == "failed"
    assert view.verdict == (
        "The protection did not hold under 1 of 2 attacks: the worst, strong, ends 10.0 ± 0.0 "
        "points above training from scratch."
    )


def test_report_says_held_only_where_every_attack_was_held_off() -> None:
    view = model_view(two_attacks(0.4))
    assert view.outcome == "held"
    assert view.verdict.startswith("The protection held under 2 attacks tried: the worst, strong,")
    assert "ends 10.0 ± 0.0 points below training from scratch." in view.verdict
    assert view.scores[1].value == "2 of 2"


def test_a_verdict_within_the_noise_or_by_one_seed_says_so() -> None:
    noisy = model_report(attack("noisy", [curve(0.3), curve(0.8)]))
    assert noisy["cells"][0]["is_clear"] is False
    assert model_view(noisy).verdict.endswith("from scratch, within the noise.")
    assert model_view(noisy).tables[0].lines[0].values[2] == "FAILED (noise)"
    single = model_view(model_report(attack("single", [curve(0.4, 0.3)]), seeds=[7]))
    assert single.verdict.endswith("ends 20.0 points below training from scratch, by one seed.")
    assert single.scope.endswith("1 attack, seed 7.")
    assert "±" not in to_markdown(single)


def test_cells_hold_every_number_and_every_curve() -> None:
    protected = [curve(0.1, 0.6), curve(0.3, 0.2, loss=float("nan"), stopped=True)]
    report = model_report(attack("one", protected, method="all_layers", finetune_lr=0.1))
    (cell,) = json.loads(json.dumps(report, allow_nan=False))["cells"]
    assert cell["facts"] == {"method": "all_layers", "finetune_lr": 0.1}
    start = cell["starts"]["protected"]
    assert start["final"]["mean"] == pytest.approx(0.4)
    assert start["peak"]["mean"] == pytest.approx(0.45)
    assert start["curve"]["mean"] == pytest.approx([0.2, 0.4])
    last = {"epoch": 1, "loss": None, "test_accuracy": 0.2, "stopped": True}
    assert start["curve"]["seeds"] == [curve(0.1, 0.6), [protected[1][0], last]]
    assert list(cell["starts"]) == ["protected", "unprotected", "scratch"]


def test_cost_is_of_the_cheapest_attack_and_a_bound_where_none_got_there() -> None:
    report = two_attacks(0.6)
    # Scratch is at 0.5 after two epochs, the worst attack after two, the mild one never.
    assert [cell["cost"]["is_bound"] for cell in report["cells"]] == [False, True]
    assert (report["headline"]["least_cost_ratio"], report["headline"]["least_cost_is_bound"]) == (
        1,
        False,
    )
    score = model_view(report).scores[2]
    assert (score.value, score.note.endswith("scratch's: strong")) == (
        "1.0 \N{MULTIPLICATION SIGN}",
        True,
    )
    held = model_view(two_attacks(0.4)).scores[2]
    assert f"{held.value} {held.unit}" == "not within 2 epochs"


def test_benign_attacks_are_apart_and_the_worst_counts() -> None:
    report = model_report(
        attack("one", [curve(0.1)] * 2),
        attack("kind", [curve(0.9)] * 2, role=BENIGN, domain="SVHN"),
        attack("kinder", [curve(0.7)] * 2, role=BENIGN, domain="flowers"),
    )
    assert report["headline"]["num_cells"] == 1
    assert report["headline"]["worst_trainability"] == pytest.approx(-0.2)
    view = model_view(report)
    assert [line.values[0] for line in view.tables[1].lines] == ["kinder", "kind"]
    assert view.scores[4].value == "-20.0 ± 0.0"
    assert view.scores[4].note.endswith("at worst: kinder on flowers")
    without = model_view(model_report(attack("one", [curve(0.1)] * 2)))
    assert (without.scores[4].value, len(without.tables)) == ("not measured", 1)


def test_cells_of_several_domains_are_named_by_both() -> None:
    view = model_view(
        model_report(
            attack("one", [curve(0.6)] * 2, domain="MNIST"),
            attack("one", [curve(0.1)] * 2, domain="faces"),
        )
    )
    assert view.verdict.startswith(
        "The protection did not hold under 1 of 2 attacks on 2 domains: the worst, one on MNIST,"
    )
    assert view.purpose == "fine-tuning to MNIST and to faces"
    assert view.tables[0].columns[:2] == ["attack", "domain"]
    assert [line.values[1] for line in view.tables[0].lines] == ["MNIST", "faces"]


def test_markdown_has_the_verdict_the_scores_and_the_tables() -> None:
    lines = to_markdown(model_view(two_attacks(0.6))).splitlines()
    assert lines[0].startswith("The protection did not hold under 1 of 2 attacks: the worst,")
    assert lines[1] == (
        "Fine-tuned to MNIST for 2 epochs, from the protected model, the unprotected one and "
        "random weights: 2 attacks, seeds 0, 1."
    )
    assert "| Original accuracy | 93.0 % | -2.0 points from 95.0 % unprotected |" in lines
    # 12.71 (Student, one degree of freedom) times 0.0707 / sqrt(2) is 63.5.
    assert lines[13:17] == [
        "| attack | gain | outcome | protected | its peak | scratch | unprotected | cost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| strong | +10.0 ± 0.0 | FAILED | 60.0 ± 0.0 | 60.0 ± 0.0 | 50.0 ± 0.0 | 90.0 ± 0.0 | "
        "1.0 \N{MULTIPLICATION SIGN} |",
        "| mild | -35.0 ± 63.5 | held (noise) | 15.0 ± 63.5 | 25.0 ± 63.5 | 50.0 ± 0.0 | "
        "90.0 ± 0.0 | not within 2 |",
    ]
    assert "| gentle | SVHN | 75.0 ± 63.5 | 90.0 ± 0.0 | 50.0 ± 0.0 | -15.0 ± 63.5 |" in lines
    assert lines[-1] == "Not tested: LoRA; whatever is not named here."


def test_a_training_that_ended_early_is_marked() -> None:
    report = model_report(attack("one", [curve(0.1, stopped=True), curve(0.1, 0.2)]))
    table = model_view(report).tables[0]
    assert table.lines[0].values[3] == "15.0 ± 63.5 †"
    assert table.note.endswith("†: ended early in at least one seed.")
    assert "†" not in model_view(two_attacks()).tables[0].note


def test_a_name_does_not_break_a_table() -> None:
    shown = to_markdown(model_view(model_report(attack("a|b\n<b>", [curve(0.1)] * 2))))
    assert "| a\\|b &lt;b> | -40.0" in shown


def test_incomplete_results_are_refused_by_name() -> None:
    whole = attack("whole", [curve(0.1)] * 2)
    with pytest.raises(ValueError, match="role of 'odd' is 'evil'; expected restricted or benign"):
        model_report(attack("odd", [curve(0.1)] * 2, role="evil"))
    headless = whole._replace(curves={"protected": whole.curves["protected"]})
    with pytest.raises(ValueError, match="'whole' are of protected; expected unprotected, scratch"):
        model_report(headless)
    with pytest.raises(ValueError, match=r"'short' from protected has curves of \[1\] epochs; exp"):
        model_report(attack("short", [curve(0.1)]))
    with pytest.raises(ValueError, match="results have no restricted domain"):
        model_report(attack("kind", [curve(0.1)] * 2, role=BENIGN))
