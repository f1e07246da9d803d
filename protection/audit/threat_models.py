"""Threat models by name: what an audit tries where a recipe does not list it all.

Learning rates are absolute, as an adversary would try them first; batches are small, as an
adversary with few images has them.
"""

from collections.abc import Iterable
from typing import Any, Final

from protection.audit.attacks import Attack
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.families import NAMES, AttackFamily
from protection.audit.methods import AUDIT_METHODS
from protection.audit.preparations import PREPARATIONS
from protection.sophon.adversary import OPTIMIZERS


def _of(method: str, optimizer: str, finetune_lr: float, **lists: Any) -> AttackFamily:
    return AttackFamily(
        methods=[method],
        optimizers=[optimizer],
        finetune_lrs=[finetune_lr],
        **{"batch_sizes": [64], **lists},
    )


# Ways of fine-tuning that have little in common, each at a usual rate; the most usual one first.
_SHORT: Final = (
    _of("redrawn_head", "adam", 1e-3),
    _of("all_layers", "sgd", 1e-2),
    _of("all_layers", "adam", 1e-3),
    _of("redrawn_head", "momentum", 1e-2),
    _of("redrawn_head_only", "adam", 1e-2),
    _of("redrawn_last_block", "adam", 1e-3),
    _of("lora", "adam", 1e-2),
    _of("gradual_unfreezing", "adam", 1e-3),
    _of("layer_wise_lr", "adamw", 1e-3),
    _of("redrawn_head", "adam", 1e-3, preparations=["heal_original", "prune"]),
)
# Every method, every optimizer at a rate that suits it, and one attack away from the most usual one
# in every direction. Without what needs a further domain.
_DEFAULT: Final = (
    *_SHORT,
    _of("all_layers", "sgd", 1e-3),
    _of("all_layers", "sgd", 1e-1),
    _of("all_layers", "adam", 1e-4),
    _of("head_only", "adam", 1e-2),
    _of("redrawn_head", "sgd", 1e-2),
    _of("redrawn_head", "momentum", 1e-3),
    _of("redrawn_head", "momentum", 1e-1),
    _of("redrawn_head", "nesterov", 1e-2),
    _of("redrawn_head", "adam", 1e-4),
    _of("redrawn_head", "adam", 1e-2),
    _of("redrawn_head", "adamw", 1e-3, weight_decays=[0.05]),
    _of("redrawn_head", "adagrad", 1e-2),
    _of("redrawn_head", "adadelta", 1.0),
    _of("redrawn_head", "rmsprop", 1e-3),
    _of("redrawn_head", "adam", 1e-3, batch_sizes=[16, 256]),
    _of("redrawn_head", "adam", 1e-3, data_fractions=[0.01, 0.1]),
    _of("redrawn_head", "adam", 1e-3, preparations=["distill", "int8"]),
    _of("redrawn_head", "adam", 1e-3, epochs_factors=[3.0]),
    _of("redrawn_last_block", "momentum", 1e-2),
    _of("last_stage", "adam", 1e-3),
    _of("norms_and_biases", "adam", 1e-2),
    _of("lora", "adam", 1e-3, lora_ranks=[32]),
    # As a pre-trained network is usually fine-tuned.
    _of(
        "layer_wise_lr",
        "adamw",
        1e-3,
        weight_decays=[0.05],
        epochs_factors=[3.0],
        schedules=["cosine"],
        warmup_shares=[0.1],
        augmentations=["crop_and_flip"],
        label_smoothings=[0.1],
    ),
)
_THOROUGH: Final = (
    *_DEFAULT,
    AttackFamily(
        methods=[*AUDIT_METHODS],
        optimizers=[*OPTIMIZERS],
        finetune_lrs=[1e-5, 1e-4, 1e-3, 1e-2, 1e-1],
        batch_sizes=[32, 128],
        epochs_factors=[1.0, 3.0],
        data_fractions=[0.01, 0.1, 1.0],
        preparations=[*PREPARATIONS],
    ),
    AttackFamily(
        methods=["all_layers", "redrawn_head"],
        optimizers=["momentum", "adam"],
        finetune_lrs=[1e-3, 1e-2],
        batch_sizes=[64],
        epochs_factors=[3.0],
        schedules=["cosine"],
        warmup_shares=[0.1],
        augmentations=[*AUGMENTATIONS],
        label_smoothings=[0.0, 0.1],
    ),
)

THREAT_MODELS: Final[dict[str, tuple[AttackFamily, ...]]] = {
    "short": _SHORT,
    "default": _DEFAULT,
    "thorough": _THOROUGH,
}


def attacks_of(families: Iterable[AttackFamily]) -> list[Attack]:
    """Every attack of ``families`` once, in their order."""
    return list(dict.fromkeys(attack for family in families for attack in family.attacks()))


def not_tested(attacks: Iterable[Attack]) -> list[str]:
    """What Ringfence knows of and none of ``attacks`` does, for a report: `method lora`, say."""
    attacks = list(attacks)
    return [
        f"{field} {name}"
        for field, names in ((lists.removesuffix("s"), names) for lists, names in NAMES.items())
        for name in names
        if name not in {getattr(attack, field) for attack in attacks} | {"none"}
    ]
