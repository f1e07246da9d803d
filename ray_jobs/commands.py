"""The subcommands of `ringfence`: their names, and where they are."""

from importlib import import_module
from typing import Any, Final, NamedTuple


class Command(NamedTuple):
    """A subcommand. Its module is imported only when it is chosen: most load Ray and torch."""

    module: str
    """In `ray_jobs`; has a function `run`, which takes the recipe and returns what to print."""
    recipe_name: str
    """The dataclass in it that the recipe fills; fields that are not keyword-only need no name."""
    summary: str
    """First line of that dataclass' docstring."""

    @property
    def recipe(self) -> Any:
        """The dataclass."""
        return getattr(import_module(f"ray_jobs.{self.module}"), self.recipe_name)

    def run(self, recipe: Any) -> str:
        """Run the recipe and return what to print."""
        result: str = import_module(f"ray_jobs.{self.module}").run(recipe)
        return result


COMMANDS: Final[dict[str, Command]] = {
    "pretrain": Command(
        "pretrain",
        "Pretrain",
        "Train a classifier or a denoiser on the original domain and commit it as a model.",
    ),
    "protect-model": Command(
        "protect_model",
        "ProtectModel",
        "Make a model resist being fine-tuned to restricted domains, and keep its accuracy.",
    ),
    "audit-model": Command(
        "audit_model",
        "AuditModel",
        "Measure what fine-tuning achieves from a protected, an unprotected and a new model.",
    ),
    "protect-data": Command(
        "protect_data",
        "ProtectData",
        "Perturb a dataset within an invisible budget so that a model trained on it learns little.",
    ),
    "audit-data": Command(
        "audit_data",
        "AuditData",
        "Measure what a model trained on protected images reaches on clean test images.",
    ),
    "sweep": Command(
        "sweep",
        "Sweep",
        "Search for the fields of another job's recipe that serve best, on validation images.",
    ),
    "card": Command(
        "card",
        "Card",
        "Print the section of a model card or dataset card that says what an audit found.",
    ),
    "ls": Command(
        "ls", "Ls", "List what is committed at or below a location, and what was begun there."
    ),
    "show": Command(
        "show", "Show", "Show what is committed at a location, how it was made, and what from."
    ),
    "verify": Command(
        "verify",
        "Verify",
        "Check that what is committed is what it was, and protected images within their budget.",
    ),
    "copy": Command("copy_commit", "Copy", "Copy what is committed at a location to another."),
    "clean": Command(
        "clean", "Clean", "Delete what is left over of old runs; without --yes, only list it."
    ),
    "demo": Command(
        "demo",
        "Demo",
        "Protect a model and a dataset of scikit-learn's images, audit both, and say what held.",
    ),
}
