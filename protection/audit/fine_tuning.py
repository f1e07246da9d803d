"""The adversary for real: fine-tuning to a domain, measured epoch by epoch."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from protection.audit.attacks import NO_MEANS, Attack, Means, Setup
from protection.audit.augmentation import AUGMENTATIONS
from protection.audit.epochs import Epochs, descend
from protection.audit.methods import Group, begin
from protection.audit.preparations import PREPARATIONS
from protection.batches import Images
from protection.evaluation import accuracy
from protection.lora import merge_adapters
from protection.models import Classifier
from protection.schedules import SCHEDULES, lr_factor
from protection.seeds import derive_seed, generator, seeded
from protection.sophon.adversary import OPTIMIZERS


class FineTuningMetrics(NamedTuple):
    """What one epoch of fine-tuning showed."""

    epoch: int
    loss: float
    """Mean cross-entropy over the epoch; not finite where the adversary diverged."""
    test_accuracy: float
    """On test images of the domain, in [0, 1]."""
    stopped: bool = False
    """Whether this epoch is the last because nothing was to be hoped for."""


def fine_tune(
    model: Classifier,
    attack: Attack,
    restricted: Images,
    test: Images,
    *,
    epochs: int,
    seed: int,
    means: Means = NO_MEANS,
    stop_hopeless_after: int | None = None,
) -> Iterator[FineTuningMetrics]:
    """Attack ``model`` in place, epoch by epoch; an attack that diverges goes on, and shows it.

    Args:
        model: what the adversary was given; it is the caller's copy, and changed.
        attack: what is done and how.
        restricted: the adversary's training images.
        test: images of the same classes that accuracy is measured on.
        epochs: the defender's horizon, passes over ``restricted``; the attack may make more.
        seed: of all that is random: the same for every model that is compared.
        means: what else the adversary has, if the attack needs it.
        stop_hopeless_after: epochs in a row with an accuracy at chance after which the attack is
            given up; None: never. It saves time, and misses who would have got through later.

    Raises:
        ValueError: the attack needs what ``means`` lacks.
    """
    setup = Setup(model, attack, means, seed)
    with seeded(seed, "setup", device=model.device):
        PREPARATIONS[attack.preparation](setup)
        groups = begin(setup, num_classes=restricted.num_classes)
    optimizer = OPTIMIZERS[attack.optimizer](
        [{"params": group.parameters} for group in groups],
        lr=attack.finetune_lr,
        weight_decay=attack.weight_decay,
    )
    chosen = stratified(restricted.labels, fraction=attack.data_fraction, seed=seed)
    passes = Epochs(restricted, chosen, attack.batch_size, (seed, "fine-tuning"))
    num_epochs = max(1, round(attack.epochs_factor * epochs))
    chance, num_hopeless = at_chance(test), 0
    try:
        for epoch in range(num_epochs):
            loss = _run_epoch(setup, groups, optimizer, passes, epoch, num_epochs=num_epochs)
            test_accuracy = accuracy(model, test, device=model.device)
            num_hopeless = num_hopeless + 1 if test_accuracy <= chance else 0
            stopped = num_hopeless == stop_hopeless_after and epoch + 1 < num_epochs
            yield FineTuningMetrics(epoch, loss, test_accuracy, stopped)
            if stopped:
                return
    finally:
        merge_adapters(model.network)


def _run_epoch(
    setup: Setup,
    groups: list[Group],
    optimizer: torch.optim.Optimizer,
    passes: Epochs,
    epoch: int,
    *,
    num_epochs: int,
) -> float:
    """Train what is to be trained by now; returns the mean loss."""
    (model, attack, _, seed), device = setup, setup.model.device
    current = [group for group in groups if group.begins_at * num_epochs <= epoch]
    trained = [parameter for group in current for parameter in group.parameters]
    total, schedule = num_epochs * passes.num_steps, SCHEDULES[attack.schedule]
    warmup = round(attack.warmup_share * total)
    losses = []
    with seeded(seed, "epoch", epoch, device=device):
        for step, batch in passes.batches(epoch, device=device):
            factor = lr_factor(step, total=total, warmup=warmup, schedule=schedule)
            for group, of_optimizer in zip(groups, optimizer.param_groups, strict=True):
                of_optimizer["lr"] = attack.finetune_lr * group.lr_factor * factor
            step_seed = derive_seed(seed, "augmentation", step)
            images, labels = AUGMENTATIONS[attack.augmentation](model, batch, step_seed)
            loss = F.cross_entropy(model(images), labels, label_smoothing=attack.label_smoothing)
            losses.append(descend(optimizer, trained, loss))
    return torch.stack(losses).mean().item()


def stratified(labels: Tensor, *, fraction: float, seed: int) -> Tensor:
    """Sorted indices of ``fraction`` of each class of ``labels``, at least one of every class.

    A smaller fraction of the same seed is a part of a larger one.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "data_fraction"))
    by_class = order[labels[order].argsort(stable=True)]
    sizes = labels.bincount()
    rank_in_class = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    num_kept = (fraction * sizes.double()).round().clamp(min=1).repeat_interleave(sizes)
    return by_class[rank_in_class < num_kept].sort().values


def at_chance(images: Images) -> float:
    """Greatest accuracy on ``images`` that a guess by the commonest class reaches by luck.

    That is two standard deviations above the class's share.
    """
    share = float(images.labels.bincount().max()) / len(images)
    return share + 2 * math.sqrt(share * (1 - share) / len(images))
