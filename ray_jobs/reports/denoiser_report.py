"""What a model audit found of a denoiser: a model audit's report, with errors and a picture.

Accuracies in it are shares of the noise that is predicted, 1 less the mean squared error.
"""

from collections.abc import Mapping
from typing import Any

from protection.audit.scores import STARTS
from protection.denoising import DENOISING
from ray_jobs.denoiser_cells import picture_of, without_samples
from ray_jobs.reporting import Row
from ray_jobs.reports.denoiser_view import DENOISER_AUDIT, last_row


def to_denoiser_report(
    report: Mapping[str, Any], original: Mapping[str, Row], *, num_timesteps: int
) -> tuple[dict[str, Any], bytes]:
    """Return the report of a denoiser's audit and its picture, a PNG file.

    Args:
        report: as `build_report` made it, of cells whose curves end in what `measure_denoiser`
            found; images are taken out of it.
        original: what that found of the protected and the unprotected model on original images.
        num_timesteps: of the noise schedule.
    """
    picture = picture_of(
        {
            **{f"{start},\nas it is": original[start] for start in ("unprotected", "protected")},
            **{f"{start},\nfine-tuned": last_row(report["cells"][0], start) for start in STARTS},
        }
    )
    for cell in (*report["cells"], *report["benign"]):
        for of_start in cell["starts"].values():
            curves = of_start["curve"]["seeds"]
            curves[:] = [without_samples(curve) for curve in curves]
    accuracies = report["headline"]["original_accuracy"]
    headline = {
        **report["headline"],
        "original_error": {start: 1 - accuracy for start, accuracy in accuracies.items()},
        "original_error_growth": DENOISING.drop(accuracies["unprotected"], accuracies["protected"]),
    }
    described = {
        **report,
        "format": DENOISER_AUDIT,
        "headline": headline,
        "num_timesteps": num_timesteps,
        "original": {start: without_samples([row])[0] for start, row in original.items()},
    }
    return described, picture
