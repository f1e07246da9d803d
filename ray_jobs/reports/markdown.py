"""A report as Markdown: whole for a terminal, in short for a model or dataset card."""

from ray_jobs.reports.views import View
from ray_jobs.reports.wording import escaped, markdown_table


def to_markdown(view: View) -> str:
    """Return what ``view`` shows, without its figures: the verdict, then scores, then tables."""
    lines = [view.verdict, view.scope, "", *scores_table(view)]
    for table in view.tables:
        rows = [line.values for line in table.lines]
        lines += ["", f"{table.title}. {table.note}", "", *markdown_table(table.columns, rows)]
    return "\n".join([*lines, "", not_tested(view), ""])


def scores_table(view: View) -> list[str]:
    """Lines of the table of what counts."""
    rows = [(name, f"{value} {unit}".strip(), note) for name, value, unit, note in view.scores]
    return markdown_table(("score", "value", "of what"), rows)


def not_tested(view: View) -> str:
    """What the verdict does not cover, in a sentence."""
    named = "; ".join([*view.not_tested, "whatever is not named here"])
    return f"Not tested: {escaped(named)}."
