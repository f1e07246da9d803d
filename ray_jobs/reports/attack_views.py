"""What the audits of classifiers and of denoisers show alike: attacks from three starts."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from protection.audit.scores import Cost
from ray_jobs.reports.model_report import cheapness
from ray_jobs.reports.views import Outcome, Score
from ray_jobs.reports.wording import count, list_seeds, show_cost, show_noise, with_noise

LINES: Final = {
    "protected": "from the protected model",
    "unprotected": "from the model as it was before",
    "scratch": "from random weights",
}
"""What the lines of the charts are."""
TERMS: Final = {
    "Attack": "One way of fine-tuning: what is trained, by which optimizer and settings.",
    "Restricted domain": "Images that the model must not be fine-tuned to.",
}
"""What the words mean that come before an audit's own."""

Cells = Sequence[Mapping[str, Any]]
"""Of a report: each attack on each domain, the worst first."""


def domains_of(cells: Cells) -> list[str]:
    """The domains of ``cells``, each once."""
    return list(dict.fromkeys(str(cell["domain"]) for cell in cells))


def names_of(cells: Cells) -> list[str]:
    """The fields that tell ``cells`` apart: the attack, and its domain where there are several."""
    return ["attack", "domain"] if len(domains_of(cells)) > 1 else ["attack"]


def name_of(cell: Mapping[str, Any], cells: Cells) -> str:
    """What ``cell`` is called among ``cells``."""
    return " on ".join(cell[name] for name in names_of(cells))


def purpose(cells: Cells) -> str:
    """What the protection is to prevent."""
    return f"fine-tuning to {' and to '.join(domains_of(cells))}"


def overall(report: Mapping[str, Any]) -> Outcome:
    """Whether the protection held under every attack."""
    headline = report["headline"]
    return "held" if headline["num_cells_held"] == headline["num_cells"] else "failed"


def verdict(report: Mapping[str, Any], tried: str, *, ends: str) -> str:
    """Under how many of the attacks that were ``tried`` it failed, and where the worst ``ends``."""
    headline, cells = report["headline"], report["cells"]
    failed = headline["num_cells"] - headline["num_cells_held"]
    outcome = f"did not hold under {failed} of {tried}" if failed else f"held under {tried} tried"
    return (
        f"The protection {outcome}: the worst, {name_of(cells[0], cells)}, ends {ends}"
        f"{show_noise(cells[0]['is_clear'])}."
    )


def scope(report: Mapping[str, Any], tried: str) -> str:
    """What was audited, by the attacks that were ``tried``."""
    return (
        f"Fine-tuned to {' and to '.join(domains_of(report['cells']))} for "
        f"{count(report['epochs'], 'epoch')}, from the protected model, the unprotected one and "
        f"random weights: {tried}, {list_seeds(report['seeds'])}."
    )


def held_score(report: Mapping[str, Any], note: str) -> Score:
    """Under how many attacks it held."""
    headline = report["headline"]
    value = f"{headline['num_cells_held']} of {headline['num_cells']}"
    return Score("Attacks held off", value, "", note)


def cost_score(cells: Cells) -> Score:
    """What the cheapest attack costs its adversary."""
    cheapest = min(cells, key=lambda cell: cheapness(cell["cost"]))
    cost = Cost(**cheapest["cost"])
    note = f"epochs to what scratch reaches, over scratch's: {name_of(cheapest, cells)}"
    unit = "epochs" if cost.is_bound else ""
    return Score("Adversary's cost, least", show_cost(cost), unit, note)


def cell_outcome(cell: Mapping[str, Any]) -> str:
    """Whether the protection held under one attack."""
    return with_noise("held" if cell["holds"] else "FAILED", cell["is_clear"])
