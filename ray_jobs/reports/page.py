"""A report as one HTML page that needs nothing but itself: no script, no network, no font."""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

import jinja2
from markupsafe import Markup

from ray_jobs.reports.figures import STYLES, accuracy_chart
from ray_jobs.reports.reproduction import command, origins, recipe_yaml, subject, versions
from ray_jobs.reports.views import View

_NEGATIVE: Final = re.compile(r"(?<![\w.])-(?=\d)")


def to_html(view: View, run: Mapping[str, Any], *, picture: bytes | None = None) -> str:
    """Return the page; equal arguments give equal text.

    Args:
        view: of the report.
        run: how it came about, see `reproduction.run_facts`.
        picture: PNG file of protected images.
    """
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("ray_jobs.reports"),
        autoescape=True,  # names of classes, attacks and files are whatever their authors wrote
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["typeset"] = _typeset
    charts = [
        Markup(accuracy_chart(chart, name=f"chart-{number}", is_large=number == 0))
        for number, chart in enumerate(view.charts)
    ]
    return templates.get_template("page.html").render(
        view=view,
        run=run,
        subject=subject(run),
        facts={
            "date": run["date"],
            "command": f"{command(run)}, with the recipe below",
            "versions": versions(run),
        },
        origins=origins(run),
        recipe=recipe_yaml(run),
        charts=charts,
        styles=STYLES,
        picture=picture and f"data:image/png;base64,{base64.b64encode(picture).decode()}",
    )


def _typeset(text: str) -> str:
    """``text`` with true minus signs, and no line broken inside a number."""
    text = _NEGATIVE.sub("\N{MINUS SIGN}", text)
    for plain, kept in ((" \xb1 ", "\xa0\xb1\xa0"), (" %", "\xa0%")):
        text = text.replace(plain, kept)
    return text
