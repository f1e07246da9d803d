"""An attack: all of one way in which an adversary goes about fine-tuning.

A `Strategy` is what SOPHON simulates. An attack adds what an adversary does who has time: other
methods, longer training, a schedule, augmentation, fewer images, and a *preparation* of the model
before it is fine-tuned.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Final, NamedTuple

from protection.batches import Images
from protection.models import Classifier
from protection.released import ReleasedModel
from protection.sophon.adversary import Strategy, number
from protection.tasks import Task


class Condition(NamedTuple):
    """When a field of an attack is of any account, and what it is then if nothing is said."""

    field: str
    values: frozenset[str]
    default: float


# Preparations that train, and which of the adversary's images they train on.
IMAGES_FOR: Final = {
    "heal_original": "original",
    "heal_unrelated": "unrelated",
    "distill": "original",
}
# Fields that only some methods or preparations have; None in the attacks of all others.
CONDITIONS: Final[dict[str, Condition]] = {
    "lora_rank": Condition("method", frozenset({"lora"}), 8),
    "lora_alpha": Condition("method", frozenset({"lora"}), 16.0),
    "layer_decay": Condition("method", frozenset({"layer_wise_lr"}), 0.75),
    "preparation_epochs": Condition("preparation", frozenset(IMAGES_FOR), 5),
    "preparation_lr": Condition("preparation", frozenset(IMAGES_FOR), 1e-3),
    "pruned_share": Condition("preparation", frozenset({"prune"}), 0.5),
}
# What only models with classes can undergo: they have a head, and their images have labels to mix.
OF_CLASSES: Final[dict[str, frozenset[str]]] = {
    "method": frozenset(
        {
            "head_only",
            "redrawn_head",
            "redrawn_head_only",
            "last_stage",
            "norms_and_biases",
            "redrawn_last_block",
            "gradual_unfreezing",
            "layer_wise_lr",
        }
    ),
    "augmentation": frozenset({"cutout", "mixup", "cutmix"}),
    "preparation": frozenset({"heal_unrelated", "distill"}),
}
# What a name says before the value of each field that a strategy does not have.
_WORDS: Final = {
    "epochs_factor": "epochs x",
    "schedule": "",
    "warmup_share": "warmup ",
    "augmentation": "",
    "label_smoothing": "smoothing ",
    "data_fraction": "data ",
    "lora_rank": "rank ",
    "lora_alpha": "alpha ",
    "layer_decay": "decay ",
    "preparation": "after ",
    "preparation_epochs": "for ",
    "preparation_lr": "at ",
    "pruned_share": "share ",
}


@dataclass(frozen=True, kw_only=True)
class Attack(Strategy):
    """One way to attack a model; everything but the images and the defender's horizon.

    What the fields mean is said where users write them, in `AttackFamily`.
    """

    epochs_factor: float = 1.0
    schedule: str = "constant"
    warmup_share: float = 0.0
    augmentation: str = "none"
    label_smoothing: float = 0.0
    data_fraction: float = 1.0
    lora_rank: int | None = None
    lora_alpha: float | None = None
    layer_decay: float | None = None
    preparation: str = "none"
    preparation_epochs: int | None = None
    preparation_lr: float | None = None
    pruned_share: float | None = None

    def __post_init__(self) -> None:
        """Complete the fields that this method and preparation have, refuse those of others."""
        for name, (field, values, default) in CONDITIONS.items():
            value, chosen = getattr(self, name), getattr(self, field)
            if chosen in values and value is None:
                object.__setattr__(self, name, default)  # the only way in a frozen dataclass
            elif chosen not in values and value is not None:
                raise ValueError(
                    f"{name} is {value}, but {field} is {chosen!r}, which has none; expected None, "
                    f"or {field} among {', '.join(sorted(values))}"
                )

    def __str__(self) -> str:
        """Return a short name for tables that no other attack has: what is not as by default."""
        words = [super().__str__()]
        for field in fields(self):
            default = CONDITIONS[field.name].default if field.name in CONDITIONS else field.default
            value = getattr(self, field.name)
            if field.name in _WORDS and value not in (None, default):
                text = value if isinstance(value, str) else number(value)
                words.append(f"{_WORDS[field.name]}{text}")
        return " ".join(words)


def require_possible(attacks: Iterable[Attack], task: Task) -> None:
    """Raise ValueError where one of ``attacks`` does what models of ``task`` cannot undergo."""
    for attack in attacks:
        if field := impossible_field(attack, task):
            raise ValueError(
                f"{field} is {getattr(attack, field)!r}, but {task.name} has no classes; expected "
                "another attack (methods all_layers and lora, augmentations none, crop_and_flip "
                "and randaugment, preparations none, heal_original, prune and int8 need none)"
            )


def impossible_field(attack: Attack, task: Task) -> str | None:
    """The field of ``attack`` that models of ``task`` cannot undergo; None: it is possible."""
    if task.has_classes:
        return None
    if attack.label_smoothing:
        return "label_smoothing"
    fields_of_classes = (name for name in OF_CLASSES if getattr(attack, name) in OF_CLASSES[name])
    return next(fields_of_classes, None)


class Means(NamedTuple):
    """What an adversary has besides a model and restricted images; None: it does not have it."""

    fresh: Callable[[], ReleasedModel] | None = None
    """Makes a network of the model's architecture, newly drawn."""
    original: Images | None = None
    """Training images of the model's own domain."""
    unrelated: Images | None = None
    """Training images of a domain that is neither the original nor the restricted one."""
    is_scratch: bool = False
    """Whether the model is a new one: it knows nothing yet."""


NO_MEANS: Final = Means()


class Setup(NamedTuple):
    """What a method and a preparation begin with."""

    model: ReleasedModel
    """Changed in place."""
    attack: Attack
    means: Means
    seed: int

    @property
    def classifier(self) -> Classifier:
        """The model, for what only classifiers can undergo."""
        assert isinstance(self.model, Classifier)  # others are refused by require_possible
        return self.model
