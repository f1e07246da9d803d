"""Families of attacks, as recipes write them."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Final

from protection.audit.attacks import CONDITIONS, Attack
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.methods import AUDIT_METHODS
from protection.audit.preparations import PREPARATIONS
from protection.schedules import SCHEDULES
from protection.sophon.adversary import (
    OPTIMIZERS,
    combinations,
    require_known,
    require_numbers,
    require_some,
)


def _default(name: str) -> list[Any]:
    return [CONDITIONS[name].default]


Range = tuple[str, Callable[[float], bool]]
"""What is expected of a number, in words and as a test."""

_POSITIVE: Final[Range] = ("positive numbers", lambda x: x > 0)
_SHARE: Final[Range] = ("above 0, at most 1", lambda x: 0 < x <= 1)
_SHARE_BELOW_ONE: Final[Range] = ("at least 0, below 1", lambda x: 0 <= x < 1)
_RANGES: Final[dict[str, Range]] = {
    "finetune_lrs": _POSITIVE,
    "batch_sizes": _POSITIVE,
    "weight_decays": ("non-negative numbers", lambda x: x >= 0),
    "epochs_factors": _POSITIVE,
    "warmup_shares": _SHARE_BELOW_ONE,
    "label_smoothings": _SHARE_BELOW_ONE,
    "data_fractions": _SHARE,
    "lora_ranks": _POSITIVE,
    "lora_alphas": _POSITIVE,
    "layer_decays": _SHARE,
    "preparation_epochs": _POSITIVE,
    "preparation_lrs": _POSITIVE,
    "pruned_shares": ("between 0 and 1", lambda x: 0 < x < 1),
}
NAMES: Final[dict[str, Collection[str]]] = {
    "methods": AUDIT_METHODS,
    "optimizers": OPTIMIZERS,
    "schedules": SCHEDULES,
    "augmentations": AUGMENTATIONS,
    "preparations": PREPARATIONS,
}


@dataclass(frozen=True, kw_only=True)
class AttackFamily:
    """All combinations of the listed values; an audit tries every one.

    A list that a method or a preparation has no use for does not multiply its attacks.
    """

    methods: list[str] = field(default_factory=lambda: ["all_layers"])
    """all_layers, head_only, redrawn_head (then all layers), redrawn_head_only, last_stage,
    norms_and_biases, lora, redrawn_last_block (then all layers), gradual_unfreezing,
    layer_wise_lr; from redrawn_head on with a new
    head."""
    optimizers: list[str] = field(default_factory=lambda: ["sgd"])
    """Among sgd, momentum, nesterov, adam, adamw, adagrad, adadelta, rmsprop."""
    finetune_lrs: list[float] = field(default_factory=lambda: [1e-4])
    """Learning rates (released code: SGD 1e-4)."""
    batch_sizes: list[int] = field(default_factory=lambda: [130])
    """Images per fine-tuning step (released code: 130 support images)."""
    weight_decays: list[float] = field(default_factory=lambda: [0.0])
    """Weight decays, as the optimizer understands them."""
    epochs_factors: list[float] = field(default_factory=lambda: [1.0])
    """Epochs of the attack, as multiples of the audit's."""
    schedules: list[str] = field(default_factory=lambda: ["constant"])
    """Of the learning rate: constant or cosine, down to zero at the end."""
    warmup_shares: list[float] = field(default_factory=lambda: [0.0])
    """Shares of the steps in which the learning rate rises to its value; at least 0, below 1."""
    augmentations: list[str] = field(default_factory=lambda: ["none"])
    """Of every training batch: none, crop_and_flip, cutout, mixup, cutmix, randaugment."""
    label_smoothings: list[float] = field(default_factory=lambda: [0.0])
    """Of the cross-entropy; at least 0, below 1."""
    data_fractions: list[float] = field(default_factory=lambda: [1.0])
    """Shares of the restricted training images of each class, at least one image of each."""
    lora_ranks: list[int] = field(default_factory=lambda: _default("lora_rank"))
    """Ranks of the adapters of lora."""
    lora_alphas: list[float] = field(default_factory=lambda: _default("lora_alpha"))
    """Scales of the adapters of lora: their change is multiplied by alpha / rank."""
    layer_decays: list[float] = field(default_factory=lambda: _default("layer_decay"))
    """Factors of the learning rate per stage, from the head down, of layer_wise_lr."""
    preparations: list[str] = field(default_factory=lambda: ["none"])
    """Before fine-tuning: none; heal_original, heal_unrelated (fine-tune there first); distill (the
    model's answers to original images into a new network); prune; int8 (round the weights). Every
    start is prepared; healing or distilling the from-scratch one is training it on those labels."""
    preparation_epochs: list[int] = field(default_factory=lambda: _default("preparation_epochs"))
    """Passes of heal_original, heal_unrelated and distill over their images."""
    preparation_lrs: list[float] = field(default_factory=lambda: _default("preparation_lr"))
    """Learning rates of these; they use Adam."""
    pruned_shares: list[float] = field(default_factory=lambda: _default("pruned_share"))
    """Shares of each layer's weights, the smallest ones, that prune sets to zero."""

    def __post_init__(self) -> None:
        """Reject names and values that no attack has."""
        require_some(self)
        for name, known in NAMES.items():
            require_known(name, getattr(self, name), known)
        for name, (expected, is_one) in _RANGES.items():
            require_numbers(name, getattr(self, name), expected, is_one)

    def attacks(self) -> list[Attack]:
        """Every combination once, in the order of the lists."""
        attacks = []
        for values in combinations(self, Attack):
            for name, condition in CONDITIONS.items():
                if values[condition.field] not in condition.values:
                    values[name] = None
            attacks.append(Attack(**values))
        return list(dict.fromkeys(attacks))
