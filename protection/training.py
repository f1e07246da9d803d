"""Ordinary supervised training: one step that workers share, and a run of such steps.

A step's batch is cut into *shards*, the unit that one worker computes. BatchNorm normalises within
a shard and its running statistics are the mean over shards, so the result depends on the number of
shards, which the recipe fixes, and not on the number of workers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from protection.batches import Batch, EpochStream, Images, read_batch
from protection.evaluation import accuracy
from protection.gradients import gradients
from protection.models import Classifier
from protection.released import ReleasedModel
from protection.savings import ROOMY, MemoryConfig
from protection.schedules import cosine, lr_factor
from protection.seeds import derive_seed, generator, seeded
from protection.tasks import training_loss
from protection.workers import ALONE, Workers, mean_over_units, zeros

Augmentation = Callable[[Classifier, Batch, int], Batch]
"""From the model as it is now, a training batch and a seed to the batch that is trained on."""


class NonFiniteError(ArithmeticError):
    """A loss became NaN or infinite; the message names where."""


def train_step(
    model: ReleasedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    num_shards: int = 1,
    seed: int = 0,
    workers: Workers = ALONE,
    label_smoothing: float = 0.0,
    memory: MemoryConfig = ROOMY,
) -> float:
    """One optimizer step on the mean loss of ``batch``, in train mode; returns that loss.

    Args:
        model: trained in place; its buffers (BatchNorm) become the mean over shards.
        optimizer: holds ``model``'s parameters.
        batch: the whole batch, the same on every worker.
        num_shards: parts of the batch that are computed, and batch-normalised, one by one; the
            workers of a group compute as many at a time as they are.
        seed: of the examples that are drawn, of dropout and the like, for this step.
        workers: who shares the shards; every one ends with the same model.
        label_smoothing: of the cross-entropy, in [0, 1).
        memory: what is saved, and how.

    Raises:
        ValueError: labels are to be smoothed, and the model's task has none.
        NonFiniteError: the loss is NaN or infinite; nothing was updated.
    """
    model.train()
    examples = model.examples(batch, seed, "examples")
    loss_of = training_loss(model.task, label_smoothing=label_smoothing)
    parameters, buffers = list(model.parameters()), list(model.buffers())
    start_buffers = [buffer.clone() for buffer in buffers]
    sums = zeros(parameters, dtype=memory.sum_dtype)
    buffer_sums = zeros(buffers)
    loss_sum = torch.zeros((), dtype=torch.float64, device=batch.images.device)
    group = workers.group
    for first in workers.share(num_shards // group.size):
        shard_index = first * group.size + group.rank
        shard = examples.shard(shard_index, num_shards=num_shards)
        # Shards differ in size by one where the batch does not divide: weigh them by their images.
        weight = num_shards * len(shard.targets) / len(examples.targets)
        _assign(buffers, start_buffers)
        with seeded(seed, "shard", shard_index, device=batch.images.device):
            outputs = model(*shard.inputs)
        # As this pass left them: activations that are computed again move them once more.
        for total, buffer in zip(buffer_sums, buffers, strict=True):
            total += buffer
        loss = weight * loss_of(outputs, shard.targets)
        for total, grad in zip(sums, gradients(model, loss, parameters), strict=True):
            total += grad
        loss_sum += loss.detach()
        del outputs, loss  # or they are held beside what the next pass computes
    group.sum_in_place([*buffer_sums, loss_sum])
    mean_over_units([*sums, *buffer_sums, loss_sum], num_units=num_shards, workers=workers)
    if not loss_sum.isfinite():
        _assign(buffers, start_buffers)
        raise NonFiniteError(f"training loss is {loss_sum.item()}")
    _assign(buffers, buffer_sums)
    for parameter in parameters:  # sums are let go one by one
        parameter.grad = sums.pop(0).to(parameter.dtype)
    optimizer.step()
    optimizer.zero_grad()
    return loss_sum.item()


@torch.no_grad()
def _assign(tensors: list[Tensor], values: list[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Ordinary training: SGD with momentum, cosine or stepped learning rate."""

    epochs: int = 120
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    learning_rate: float = 0.1
    """Peak learning rate of SGD."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 5e-4
    """L2 penalty on all weights."""
    milestones: list[int] | None = None
    """Epochs at which the learning rate falls to a tenth; null: cosine to zero over the run."""
    random_crop_flip: bool = False
    """Augment by a random crop after padding by an eighth of the image, and a horizontal flip."""
    label_smoothing: float = 0.0
    """Of the cross-entropy."""
    shards: int = 1
    """Parts of a batch that workers share; BatchNorm sees one part at a time. At least the number
    of workers."""
    seed: int = 0
    """Of weights, order and augmentation."""

    def __post_init__(self) -> None:
        """Reject values that no run can use."""
        for name in ("epochs", "batch_size", "shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a positive number")
        if self.batch_size < 2 * self.shards:
            raise ValueError(
                f"shards is {self.shards}, but batch_size is {self.batch_size} and BatchNorm needs "
                f"2 images a shard; expected at most {self.batch_size // 2}"
            )


class EpochMetrics(NamedTuple):
    """What one epoch of training showed; accuracies are shares in [0, 1]."""

    epoch: int
    loss: float
    validation_accuracy: float


@dataclass
class TrainingState:
    """All that a training run needs to go on."""

    model: Classifier
    optimizer: torch.optim.SGD
    next_epoch: int = 0

    def state_dict(self) -> dict[str, object]:
        """Tensors and numbers, nested; shares memory with the live state."""
        return {
            "model": self.model.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "next_epoch": self.next_epoch,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` returned."""
        self.model.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.next_epoch = state["next_epoch"]


def start_training(model: Classifier, config: TrainingConfig) -> TrainingState:
    """State of a run that has not begun."""
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
    )
    return TrainingState(model, optimizer)


def train(
    state: TrainingState,
    images: Images,
    validation: Images,
    *,
    config: TrainingConfig,
    workers: Workers = ALONE,
    augment: Augmentation | None = None,
) -> Iterator[EpochMetrics]:
    """Train from ``state.next_epoch`` on; ``state`` is current whenever a value is yielded.

    Args:
        state: of `start_training`; changed.
        images: trained on.
        validation: accuracy is measured on them after every epoch.
        config: of the run.
        workers: who shares the shards of a batch.
        augment: applied to every batch after crop and flip, by every worker to all of it.

    Raises:
        NonFiniteError: naming epoch and step.
    """
    model, device = state.model, state.model.device
    stream = EpochStream(len(images), config.seed, "train")
    num_steps = -(-len(images) // config.batch_size)
    for epoch in range(state.next_epoch, config.epochs):
        losses = []
        for step in range(epoch * num_steps, (epoch + 1) * num_steps):
            for group in state.optimizer.param_groups:
                group["lr"] = learning_rate_at(step, num_steps=num_steps, config=config)
            indices = stream.at(step * config.batch_size, config.batch_size)
            batch = read_batch(images, indices, device=device)
            step_seed = derive_seed(config.seed, "step", step)
            if config.random_crop_flip:
                batch = Batch(crop_and_flip(batch.images, seed=step_seed), batch.labels)
            if augment is not None:
                batch = augment(model, batch, step_seed)
            try:
                loss = train_step(
                    model,
                    state.optimizer,
                    batch,
                    num_shards=config.shards,
                    seed=step_seed,
                    workers=workers,
                    label_smoothing=config.label_smoothing,
                )
            except NonFiniteError as error:
                raise NonFiniteError(
                    f"{error} at epoch {epoch}, step {step % num_steps}; expected a finite number "
                    f"(learning_rate is {config.learning_rate}: try a smaller one, and check the "
                    "weights)"
                ) from error
            losses.append(loss)
        state.next_epoch = epoch + 1
        validation_accuracy = accuracy(model, validation, device=device, workers=workers)
        yield EpochMetrics(epoch, sum(losses) / len(losses), validation_accuracy)


def learning_rate_at(step: int, *, num_steps: int, config: TrainingConfig) -> float:
    """Learning rate of ``step`` of the run, with ``num_steps`` steps in an epoch."""
    if config.milestones is not None:
        passed = sum(step >= milestone * num_steps for milestone in config.milestones)
        return config.learning_rate * 0.1**passed
    total = config.epochs * num_steps
    # Large rates diverge from a cold start; a tenth of a short run is enough of a warm-up.
    warmup = min(num_steps, total // 10)
    return config.learning_rate * lr_factor(step, total=total, warmup=warmup, schedule=cosine)


def crop_and_flip(images: Tensor, *, seed: int) -> Tensor:
    """Each of ``(B, C, H, W)`` images padded by an eighth, cropped at random, half mirrored."""
    num_images, _, height, width = images.shape
    rng = generator(seed, "augmentation")
    up, left = height // 8, width // 8
    top = torch.randint(2 * up + 1, (num_images,), generator=rng)
    start = torch.randint(2 * left + 1, (num_images,), generator=rng)
    is_mirrored = torch.rand(num_images, 1, 1, 1, generator=rng) < 0.5
    # A view of every window, then one gather for the batch: image by image, small ones take 25
    # times as long.
    windows = F.pad(images, (left, left, up, up)).unfold(2, height, 1).unfold(3, width, 1)
    crops = windows[torch.arange(num_images), :, top, start]
    return torch.where(is_mirrored.to(images.device), crops.flip(-1), crops)
