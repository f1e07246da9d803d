"""A data audit as it is shown."""

from collections.abc import Mapping
from typing import Any, Final

from ray_jobs.reporting import percent
from ray_jobs.reports.heat_maps import accuracy_maps
from ray_jobs.reports.views import NUM_CHARTS, Chart, Line, Score, Table, View, chart_series
from ray_jobs.reports.wording import (
    NOISE,
    count,
    list_seeds,
    mean_over,
    points,
    show_noise,
    show_stored,
    with_noise,
)

_LINES: Final = {
    "protected": "trained on protected images",
    "clean": "trained on clean images",
    "chance": "by guessing",
}
_TERMS: Final = {
    "Appropriator": "A party that trains its own model on the protected images.",
    "Countermeasure": "What an appropriator does to the images against the protection. One that "
    "changes each image once was applied to the test images, too.",
    "Accuracy left": "Accuracy on clean test images that a model reaches which was trained on "
    "protected ones: the best epoch by those test images themselves, which early stopping cannot "
    "exceed.",
    "Accuracy cost": "Accuracy left to the same appropriator by clean images, without a "
    "countermeasure, less that left by the protected ones. At most 0: the protection did nothing.",
    "PSNR, SSIM": "How near protected images are to the clean: peak signal-to-noise ratio in dB "
    "and structural similarity, at most 1; higher is nearer.",
    "Detectability": "How well a linear classifier tells protected images from clean ones that it "
    "was not trained on: the mean of the shares told rightly, 50 % by guessing. It was trained "
    "on pairs of both, once on pixels and once on their frequencies; the better counts.",
    "±": NOISE,
}


def data_view(report: Mapping[str, Any]) -> View:
    """Return what is shown of a data audit's ``report``."""
    cells = report["cells"]
    return View(
        kind="Data audit",
        verdict=_verdict(report),
        outcome="failed" if _has_failed(cells[0]) else "open",
        purpose="training on its images",
        scope=_scope(report),
        scores=[*_accuracy_scores(report), *_image_scores(report)],
        tables=[_cells_table(report)],
        heat_maps=accuracy_maps(report),
        charts=[_chart(cell, report) for cell in cells[:NUM_CHARTS]],
        lines=_LINES,
        not_tested=report["not_tested"],
        terms=_TERMS,
    )


def _name(cell: Mapping[str, Any]) -> str:
    under = cell["countermeasure"]
    return f"{cell['appropriator']}{'' if under == 'none' else f' with {under}'}"


def _verdict(report: Mapping[str, Any]) -> str:
    headline, worst = report["headline"], report["cells"][0]
    left = show_stored(worst["protected"]["peak"])
    clean = points(headline["peak_clean_accuracy"])
    cost = show_stored(worst["accuracy_cost"])
    loses = "no less than" if _has_failed(worst) else f"{cost} points less than"
    return (
        f"The worst case, {_name(worst)}, still reaches {left} % on clean test images: {loses} "
        f"the {clean} % that clean images teach it{show_noise(worst['is_clear'])}; chance is "
        f"{percent(headline['chance'])}."
    )


def _scope(report: Mapping[str, Any]) -> str:
    headline = report["headline"]
    measures = headline["num_countermeasures"]
    under = f"{count(measures, 'countermeasure')}" if measures else "no countermeasure"
    return (
        f"Trained on the protected images under {under}, and on the clean ones: "
        f"{count(headline['num_appropriators'], 'appropriator')}, each as its recipe says, "
        f"{list_seeds(report['seeds'])}."
    )


def _accuracy_scores(report: Mapping[str, Any]) -> list[Score]:
    headline, worst = report["headline"], report["cells"][0]
    clean = report["clean"][worst["appropriator"]]["peak"]
    return [
        Score(
            "Accuracy left, worst",
            show_stored(worst["protected"]["peak"]),
            "%",
            f"{_name(worst)}; clean images {show_stored(clean)} %, "
            f"chance {percent(headline['chance'])}",
        ),
        Score(
            "Accuracy cost",
            show_stored(worst["accuracy_cost"]),
            "points",
            "to that appropriator",
        ),
    ]


def _image_scores(report: Mapping[str, Any]) -> list[Score]:
    dataset = report["dataset"]
    scores = [_share_score(dataset)] if dataset["num_images"] else []
    if dataset["psnr_median"] is not None:
        budget = dataset["epsilon_levels"]
        scores.append(
            Score(
                "Likeness",
                f"{dataset['psnr_median']:.1f}",
                "dB",
                f"median PSNR of protected images; SSIM {dataset['ssim_median']:.3f}; at most "
                f"{dataset['max_change_levels']} of 255 levels (budget {budget})",
            )
        )
    return [*scores, _detection_score(report["detection"])]


def _share_score(dataset: Mapping[str, Any]) -> Score:
    total, protected = dataset["num_images"], dataset["num_protected"]
    by = f" by {dataset['variant']}" if dataset["variant"] else ""
    share = points(protected / total)
    return Score("Images protected", share, "%", f"{protected:,} of {total:,}{by}")


def _detection_score(detection: Mapping[str, Any] | None) -> Score:
    if detection is None:
        return Score("Detectability", "not measured", "", "protected from clean images")
    best = max(detection, key=lambda name: detection[name]["balanced_accuracy"])
    found = detection[best]
    return Score(
        "Detectability",
        points(found["balanced_accuracy"]),
        "%",
        f"told rightly by a linear classifier on the {best} (AUC {found['auc']:.2f}); guessing is "
        "50 %",
    )


def _cells_table(report: Mapping[str, Any]) -> Table:
    names = ["appropriator", "countermeasure"]
    clean = {name: of_one["peak"] for name, of_one in report["clean"].items()}
    return Table(
        title="Every appropriator under every countermeasure, worst first",
        note=f"Accuracy on clean test images in %, {mean_over(report['seeds'])}: the peak, and "
        "after the last epoch. Cost: what clean images teach, without a countermeasure, less what "
        "protected ones do, both at their peak.",
        columns=[*names, "peak", "cost", "outcome", "clean", "last", "epochs"],
        num_names=len(names),
        lines=[
            Line(
                [
                    *[cell[name] for name in names],
                    show_stored(cell["protected"]["peak"]),
                    show_stored(cell["accuracy_cost"], sign="+"),
                    _outcome(cell),
                    show_stored(clean[cell["appropriator"]]),
                    show_stored(cell["protected"]["final"]),
                    str(cell["epochs"]),
                ],
                is_bad=_has_failed(cell),
            )
            for cell in report["cells"]
        ],
    )


def _has_failed(cell: Mapping[str, Any]) -> bool:
    cost: float = cell["accuracy_cost"]["mean"]
    return cost <= 0


def _outcome(cell: Mapping[str, Any]) -> str:
    return with_noise("NO EFFECT" if _has_failed(cell) else "learns less", cell["is_clear"])


def _chart(cell: Mapping[str, Any], report: Mapping[str, Any]) -> Chart:
    left = show_stored(cell["protected"]["peak"])
    starts = {"protected": cell["protected"], "clean": report["clean"][cell["appropriator"]]}
    return Chart(
        title=_name(cell),
        note=f"{left} % at the peak",
        series=chart_series(starts),
        chance=report["headline"]["chance"],
    )
