"""`ringfence card`: what an audit found, as a section for a model card or a dataset card.

It says what was measured and against what, and claims nothing beyond.
"""

from dataclasses import dataclass
from typing import Final

from ray_jobs.reports.markdown import not_tested, scores_table
from ray_jobs.reports.reproduction import command, identities, subject, versions
from ray_jobs.reports.stored import StoredReport, read_report
from ray_jobs.reports.wording import escaped, markdown_table

_NUM_LINES: Final = 5


@dataclass(frozen=True)
class Card:
    """Print the section of a model card or dataset card that says what an audit found."""

    location: str
    """Of the report, as `audit-model` or `audit-data` printed it."""


def run(job: Card) -> str:
    """Return the section, as Markdown.

    Raises:
        StorageError: nothing is committed there, or it is damaged.
        UsageError: what is there is no audit's report.
    """
    stored = read_report(job.location)
    view, how = stored.view, stored.report["run"]
    return "\n".join(
        [
            "## Protection audit",
            "",
            f"`{subject(how)}` was changed to resist {escaped(view.purpose)}. "
            f"Ringfence audited it on {how['date']}:",
            "",
            f"> **{escaped(view.verdict)}**",
            "",
            escaped(view.scope),
            "",
            *scores_table(view),
            "",
            *_worst_lines(stored),
            "",
            not_tested(view),
            "These are measurements of the adversaries named, on these data; they bound no other "
            "adversary.",
            "",
            *_reproduction(stored),
        ]
    )


def _worst_lines(stored: StoredReport) -> list[str]:
    table = stored.view.tables[0]
    shown = table.lines[:_NUM_LINES]
    left_out = "" if shown == table.lines else f" ({len(shown)} of {len(table.lines)} lines)"
    return [
        f"{table.title}{left_out}. {escaped(table.note)}",
        "",
        *markdown_table(table.columns, [line.values for line in shown]),
    ]


def _reproduction(stored: StoredReport) -> list[str]:
    how = stored.report["run"]
    found = {"report commit": stored.manifest.commit_id, **identities(how)}
    return [
        "### How to reproduce it",
        "",
        "With the recipe that `report.json` holds under `run`, and the same seeds:",
        "",
        "```",
        command(how),
        "```",
        "",
        f"Versions: {versions(how)}.",
        "",
        *markdown_table(("of", "commit id or SHA-256"), found.items()),
    ]
