"""What a protection sees, and whether it can be run on it."""

from collections.abc import Sequence
from typing import NamedTuple

from protection.batches import Images
from protection.sophon.adversary import METHODS, check_fits
from protection.sophon.config import SophonConfig
from protection.sophon.losses import SUPPRESSION_LOSSES
from protection.tasks import Task


class Domains(NamedTuple):
    """The images a protection sees; no test image is among them."""

    original: Images
    original_validation: Images
    restricted: Sequence[Images]


def check_domains(
    domains: Domains, *, task: Task, model_classes: int | None, config: SophonConfig
) -> None:
    """Raise ValueError where the configuration cannot be run on these images.

    Args:
        domains: of the run.
        task: of the model.
        model_classes: outputs of the model's head; None where it has none.
        config: of the run.
    """
    _check_task(task, config)
    if model_classes is not None and domains.original.num_classes != model_classes:
        raise ValueError(
            f"the model has {model_classes} classes, but the original domain has "
            f"{domains.original.num_classes}; expected the domain it was trained on"
        )
    if not domains.restricted:
        raise ValueError("restricted is empty; expected at least one restricted domain")
    largest = max(size for family in config.adversary for size in family.batch_sizes)
    for restricted in domains.restricted:
        if model_classes is not None:
            check_fits(
                _methods(config),
                model_classes=model_classes,
                domain_classes=restricted.num_classes,
            )
        if largest + config.query_size > len(restricted):
            raise ValueError(
                f"a step draws {largest} support and {config.query_size} query images, but a "
                f"restricted domain has {len(restricted)}; expected a smaller batch size or more "
                "images"
            )


def _check_task(task: Task, config: SophonConfig) -> None:
    """Refuse a loss or a method that models of ``task`` do not have."""
    known = SUPPRESSION_LOSSES[task.name]
    if config.suppression_loss not in known:
        raise ValueError(
            f"suppression_loss is {config.suppression_loss!r}, but the model's task is {task.name};"
            f" expected one of {', '.join(known)}"
        )
    for method in _methods(config):
        if METHODS[method].needs_head and not task.has_classes:
            raise ValueError(
                f"methods has {method!r}, but a model for {task.name} has no head; expected "
                "all_layers"
            )


def _methods(config: SophonConfig) -> list[str]:
    return [method for family in config.adversary for method in family.methods]
