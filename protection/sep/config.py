"""The numbers of SEP, with the released code's values as defaults."""

from dataclasses import dataclass
from typing import Final

from protection.names import nearest

PRECISIONS: Final = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class SepConfig:
    """Self-ensemble protection; every default is the released code's unless it says otherwise."""

    epsilon_levels: int = 2
    """l-infinity budget, epsilon, in 8-bit levels: 2 is 2/255."""
    step_size_levels: float = 1.0
    """Length of a signed step in 8-bit levels."""
    steps: int = 30
    """Signed steps per image."""
    members: int = 30
    """Checkpoints to use, evenly spaced in the trajectory, its last always among them (released
    with variance reduction: 15)."""
    feature_alignment: bool = False
    """SEP-FA: pull features to the wrong class's mean feature in place of the label to the wrong
    class."""
    variance_reduction: bool = False
    """SEP-VR: follow an inner loop over random members in place of their mean gradient."""
    inner_steps: int = 15
    """Steps of that inner loop, M."""
    last_member_means: bool = False
    """In the inner loop, align every member to the last member's class means, as the released code
    does; false: each to its own, as the paper says."""
    target_classes: list[int] | None = None
    """Wrong class of each class, by number; null: the class half the class count away."""
    batch_size: int = 128
    """Images whose gradients are computed together. Not from the paper."""
    vectorised_members: int = 1
    """Members computed together by torch.func.vmap; 1: one after another. Not from the paper."""
    stream_members: bool | None = None
    """Keep the members' weights in the host's memory and copy each into one network on the GPU when
    it computes; null: if they would take more than half of the GPU. The result is the same. Not
    from the paper."""
    precision: str = "float32"
    """Of convolutions and matrix products: float32 or bfloat16. Not from the paper."""
    seed: int = 0
    """Of the members that the inner loop draws."""

    def __post_init__(self) -> None:
        """Reject values that no image can be protected with."""
        if not 1 <= self.epsilon_levels <= 255:
            raise ValueError(
                f"epsilon_levels is {self.epsilon_levels}, a number of 8-bit levels; expected 1 to "
                "255"
            )
        if not 0 < self.step_size_levels <= 2 * self.epsilon_levels:
            raise ValueError(
                f"step_size_levels is {self.step_size_levels}, but the budget is "
                f"{self.epsilon_levels} levels; expected above 0, at most "
                f"{2 * self.epsilon_levels}"
            )
        for name in ("steps", "members", "inner_steps", "batch_size", "vectorised_members"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.vectorised_members > self.members:
            raise ValueError(
                f"vectorised_members is {self.vectorised_members}, but there are {self.members} "
                f"members; expected at most {self.members}"
            )
        if self.stream_members and self.vectorised_members > 1:
            raise ValueError(
                f"stream_members is true, but vectorised_members is {self.vectorised_members}, "
                "which computes several at a time; expected 1 (or false)"
            )
        if self.last_member_means and not (self.feature_alignment and self.variance_reduction):
            raise ValueError(
                "last_member_means is true, but it changes nothing without feature_alignment and "
                "variance_reduction; expected false, or both of them"
            )
        if self.precision not in PRECISIONS:
            raise ValueError(
                f"precision is {self.precision!r}; expected one of {', '.join(PRECISIONS)}"
                f"{nearest(self.precision, PRECISIONS)}"
            )
        if self.target_classes is not None:
            _check_targets(self.target_classes)

    @property
    def variant(self) -> str:
        """The published name of what is configured."""
        features = "-FA" if self.feature_alignment else ""
        return f"SEP{features}{'-VR' if self.variance_reduction else ''}"


def _check_targets(target_classes: list[int]) -> None:
    num_classes = len(target_classes)
    for label, target in enumerate(target_classes):
        if not 0 <= target < num_classes or target == label:
            raise ValueError(
                f"target_classes[{label}] is {target}; expected another class than {label}, from 0 "
                f"to {num_classes - 1}"
            )
