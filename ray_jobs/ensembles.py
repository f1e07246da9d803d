"""From a committed trajectory to the ensemble that a worker computes with.

Members are loaded once for the whole run. Where workers form groups, each loads its part.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from protection.sep.config import SepConfig
from protection.sep.gradients import Ensemble, build_ensemble
from protection.sep.trajectory import Member, class_means, evenly_spaced, target_labels
from ray_jobs.trajectories import Trajectory
from ray_jobs.workers import WorkerGroups
from storage.datasets import ImageDataset


def load_ensemble(
    trajectory: Trajectory,
    reference: ImageDataset,
    *,
    config: SepConfig,
    groups: WorkerGroups,
    device: torch.device,
) -> Ensemble:
    """Load this worker's members; with feature alignment, measure their class means.

    All workers must call it.

    Args:
        trajectory: where the members come from.
        reference: images that the class means are taken of.
        config: which members, and how they compute.
        groups: one worker of a group after another holds a member.
        device: of the members.

    Raises:
        StorageError: a checkpoint cannot be read.
    """
    chosen = evenly_spaced(config.members, total=len(trajectory.checkpoints))
    models = {
        number: trajectory.load(chosen[number]).to(device)
        for number in groups.within.share(config.members)
    }
    means: dict[int, Tensor | None] = dict.fromkeys(models)
    if config.feature_alignment:
        measured = class_means(list(models.values()), reference, workers=groups.across)
        means = dict(zip(models, measured, strict=True))
    return build_ensemble(
        {number: Member(model, means[number]) for number, model in models.items()},
        size=config.members,
        vectorised_members=config.vectorised_members,
        precision=getattr(torch, config.precision),
        inner_class_means=_last_means(means, config, groups) if config.last_member_means else None,
        workers=groups.within,
    )


def _last_means(means: dict[int, Tensor | None], config: SepConfig, groups: WorkerGroups) -> Tensor:
    """Class means of the last member, which one worker of each group holds."""
    like = next(iter(means.values()))
    assert like is not None  # the configuration refuses the switch without feature alignment
    last = means.get(config.members - 1)
    shared = torch.zeros_like(like) if last is None else last.clone()
    groups.within.sum_in_place([shared])
    return shared


def check_classes(trajectory: Trajectory, images: ImageDataset, *, name: str) -> None:
    """Refuse images whose classes are not those of the protecting model.

    Classes in another order would pull an image toward what the model takes for its true class.

    Raises:
        ValueError: naming the recipe's field, ``name``, and both lists.
    """
    own, found = trajectory.description.class_names, images.class_names
    # A source without names of its own numbers its classes.
    has_names = not all(class_name.isdecimal() for class_name in found)
    if len(found) != len(own) or (has_names and found != own):
        raise ValueError(
            f"{name} has the classes {_listed(found)}, but the trajectory was trained on "
            f"{_listed(own)}; expected the same in the same order (did you mean {name}.classes: "
            f"[{_listed(own)}]?)"
        )


def check_ensemble(
    trajectory: Trajectory, labels: Tensor, reference: ImageDataset, *, config: SepConfig
) -> None:
    """Refuse a configuration that this trajectory or these images cannot serve.

    Args:
        trajectory: where members come from.
        labels: ``(N,)`` of the images to protect.
        reference: images that class means are taken of.
        config: of the ensemble.

    Raises:
        ValueError: there are fewer checkpoints than members, not as many target classes as
            classes, or no image of a class that others are aligned to.
    """
    if config.members > len(trajectory.checkpoints):
        raise ValueError(
            f"sep.members is {config.members}, but the trajectory has "
            f"{len(trajectory.checkpoints)} checkpoints; expected at most "
            f"{len(trajectory.checkpoints)}"
        )
    names, targets = trajectory.description.class_names, config.target_classes
    if targets is not None and len(targets) != len(names):
        raise ValueError(
            f"sep.target_classes has {len(targets)} entries, but there are {len(names)} classes; "
            "expected one for each"
        )
    if config.feature_alignment:
        present = torch.unique(labels)
        needed = target_labels(present, num_classes=len(names), target_classes=targets)
        absent = needed[~torch.isin(needed, reference.labels)].tolist()
        if absent:
            raise ValueError(
                f"class {names[absent[0]]!r} has no image to take a mean feature of, and others "
                "are aligned to it; expected reference: images of every class, e.g. those that "
                "the trajectory was trained on"
            )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:10])
    return shown if len(names) <= 10 else f"{shown} and {len(names) - 10} more"
