"""Draw the README's pictures of a demo: `python -m docs.scripts.pictures DEMO_FOLDER`.

`model.svg` has the curves of two attacks on the digits' model: the kind that its protection
simulated, and the worst of all. `data.png` is the strip that was committed with the photographs.
"""

import sys
from pathlib import Path
from typing import Final

from markupsafe import escape

from ray_jobs.preview import PREVIEW_PART
from ray_jobs.reports.figures import accuracy_chart
from ray_jobs.reports.stored import read_report
from ray_jobs.reports.views import Chart, chart_series
from storage.commit import read_part

FOLDER: Final = Path(__file__).parent.parent / "pictures"
# What SOPHON simulated in recipes/digits: SGD at 0.01, the head kept.
_SIMULATED: Final = "all_layers sgd 0.01 batch 64"
_WIDTH: Final = 460
_HEIGHT: Final = 350
_STYLE: Final = """
svg { --ink: #1b1f24; --muted: #57606a; --line: #d8dee4; --paper: #ffffff;
      --protected: #0a5aa8; --reference: #b0480c; --other: #5b6570;
      font-family: system-ui, "Segoe UI", Roboto, Arial, sans-serif; }
@media (prefers-color-scheme: dark) {
  svg { --ink: #e6e9ec; --muted: #a2abb5; --line: #363d46; --paper: #14171b;
        --protected: #6db3f2; --reference: #f0a05c; --other: #a2abb5; }
}
.paper { fill: var(--paper); } .title { fill: var(--ink); font-size: 17px; font-weight: 600; }
.note { fill: var(--muted); font-size: 13px; }
"""


def model_picture(location: str) -> str:
    """SVG file of two attacks' curves in the report at ``location``."""
    report = read_report(location).report
    cells = {cell["attack"]: cell for cell in report["cells"]}
    worst = report["cells"][0]
    shown = {"Held: the attack that it simulated": cells[_SIMULATED], "Did not hold: LoRA": worst}
    assert worst["facts"]["method"] == "lora", worst["attack"]
    panels = []
    for number, (title, cell) in enumerate(shown.items()):
        chart = Chart(cell["attack"], "", chart_series(cell["starts"]))
        drawn = accuracy_chart(chart, name=f"panel-{number}", is_large=True).replace(
            "<svg ", f'<svg x="0" y="56" width="{_WIDTH}" height="290" ', 1
        )
        panels.append(
            f'<g transform="translate({number * (_WIDTH + 20)})">'
            f'<text class="title" x="8" y="24">{escape(title)}</text>'
            f'<text class="note" x="8" y="45">{escape(cell["attack"])}, by the epoch</text>'
            f"{drawn}</g>"
        )
    width = 2 * _WIDTH + 20
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {_HEIGHT}" width="{width}" height="{_HEIGHT}" role="img" '
        f'aria-label="Accuracy on restricted digits over ten epochs of two attacks">'
        f'<style>{_STYLE}</style><rect class="paper" width="100%" height="100%" rx="8"/>'
        f"{''.join(panels)}</svg>\n"
    )


def main(demo: Path) -> None:
    """Write the pictures of the ``demo`` at that folder."""
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "model.svg").write_text(model_picture(str(demo / "model-audit")))
    (FOLDER / "data.png").write_bytes(read_part(str(demo / "protected-data"), PREVIEW_PART))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
