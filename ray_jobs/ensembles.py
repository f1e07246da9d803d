"""From a committed trajectory to the ensemble that a worker computes with.

Members are loaded once for the whole run. Where workers form groups, each loads its part.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from protection.models import Classifier
from protection.sep.config import SepConfig
from protection.sep.gradients import Ensemble, build_ensemble
from protection.sep.trajectory import (
    Member,
    class_means,
    evenly_spaced,
    in_host_memory,
    target_labels,
)
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
    members = _load_members(trajectory, config, groups, device)
    means: dict[int, Tensor | None] = dict.fromkeys(members)
    if config.feature_alignment:
        means = _measure_means(members, reference, groups)
    return build_ensemble(
        {number: member._replace(class_means=means[number]) for number, member in members.items()},
        size=config.members,
        vectorised_members=config.vectorised_members,
        precision=getattr(torch, config.precision),
        inner_class_means=_last_means(means, config, groups) if config.last_member_means else None,
        workers=groups.within,
    )


def _load_members(
    trajectory: Trajectory, config: SepConfig, groups: WorkerGroups, device: torch.device
) -> dict[int, Member]:
    """Members of this worker, without class means."""
    chosen = evenly_spaced(config.members, total=len(trajectory.checkpoints))
    members: dict[int, Member] = {}
    shared: Classifier | None = None
    for number in (own := list(groups.within.share(config.members))):
        model = trajectory.load(chosen[number])
        if not members and _is_streamed(model, config, num_members=len(own), device=device):
            shared = copy.deepcopy(model).to(device)
        if shared is None:
            members[number] = Member(model.to(device), None)
        else:
            weights = in_host_memory(model, pinned=device.type == "cuda")
            members[number] = Member(shared, None, weights)
    return members


def _is_streamed(
    model: Classifier, config: SepConfig, *, num_members: int, device: torch.device
) -> bool:
    if config.stream_members is not None or device.type != "cuda" or config.vectorised_members > 1:
        return bool(config.stream_members)
    one: int = sum(tensor.nbytes for tensor in model.state_dict().values())
    free: int = torch.cuda.mem_get_info(device)[0]
    return num_members * one > free / 2


def _measure_means(
    members: Mapping[int, Member], reference: ImageDataset, groups: WorkerGroups
) -> dict[int, Tensor | None]:
    if any(member.weights is not None for member in members.values()):
        # The images are read anew for each: only one is in the network at a time.
        return {
            number: class_means([member.placed()], reference, workers=groups.across)[0]
            for number, member in members.items()
        }
    models = [member.model for member in members.values()]
    return dict(zip(members, class_means(models, reference, workers=groups.across), strict=True))


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
