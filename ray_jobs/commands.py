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
    example: str
    """A command line that runs as it is, from the repository's root and in the README's order."""

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
        "ringfence pretrain --config recipes/digits/pretrain.yaml",
    ),
    "protect-model": Command(
        "protect_model",
        "ProtectModel",
        "Make a model resist being fine-tuned to restricted domains, and keep its accuracy.",
        "ringfence protect-model --config recipes/digits/protect-model.yaml",
    ),
    "audit-model": Command(
        "audit_model",
        "AuditModel",
        "Measure what fine-tuning achieves from a protected, an unprotected and a new model.",
        "ringfence audit-model --config recipes/digits/audit-model.yaml",
    ),
    "protect-data": Command(
        "protect_data",
        "ProtectData",
        "Perturb a dataset within an invisible budget so that a model trained on it learns little.",
        "ringfence protect-data --config recipes/photographs/protect-data.yaml",
    ),
    "audit-data": Command(
        "audit_data",
        "AuditData",
        "Measure what a model trained on protected images reaches on clean test images.",
        "ringfence audit-data --config recipes/photographs/audit-data.yaml",
    ),
    "sweep": Command(
        "sweep",
        "Sweep",
        "Search for the fields of another job's recipe that serve best, on validation images.",
        "ringfence sweep --config recipes/digits/sweep.yaml",
    ),
    "card": Command(
        "card",
        "Card",
        "Print the section of a model card or dataset card that says what an audit found.",
        "ringfence card runs/digits/audit",
    ),
    "ls": Command(
        "ls",
        "Ls",
        "List what is committed at or below a location, and what was begun there.",
        "ringfence ls runs",
    ),
    "show": Command(
        "show",
        "Show",
        "Show what is committed at a location, how it was made, and what from.",
        "ringfence show runs/digits/audit",
    ),
    "verify": Command(
        "verify",
        "Verify",
        "Check that what is committed is what it was, and protected images within their budget.",
        "ringfence verify runs/photographs/protected",
    ),
    "copy": Command(
        "copy_commit",
        "Copy",
        "Copy what is committed at a location to another.",
        "ringfence copy runs/digits/protected s3://my-bucket/digits",
    ),
    "clean": Command(
        "clean",
        "Clean",
        "Delete what is left over of old runs; without --yes, only list it.",
        "ringfence clean runs --older_than 48",
    ),
    "demo": Command(
        "demo",
        "Demo",
        "Protect a model and a dataset of scikit-learn's images, audit both, and say what held.",
        "ringfence demo",
    ),
    "completion": Command(
        "completion",
        "Completion",
        "Print what makes a shell complete commands, fields and file names.",
        "ringfence completion zsh > ~/.zsh/completions/_ringfence",
    ),
}
