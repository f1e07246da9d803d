"""The adversary for real: fine-tuning to a restricted domain, measured epoch by epoch."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch.nn import functional as F

from protection.batches import EpochStream, Images, read_batch
from protection.evaluation import accuracy
from protection.models import Classifier
from protection.seeds import generator, seeded
from protection.sophon.adversary import Strategy, begin_fine_tuning


class FineTuningMetrics(NamedTuple):
    """What one epoch of fine-tuning showed."""

    epoch: int
    loss: float
    """Mean cross-entropy over the epoch; not finite where the adversary diverged."""
    test_accuracy: float
    """On restricted test images, in [0, 1]."""


def fine_tune(
    model: Classifier,
    strategy: Strategy,
    restricted: Images,
    test: Images,
    *,
    epochs: int,
    seed: int,
) -> Iterator[FineTuningMetrics]:
    """Fine-tune ``model`` in place, epoch by epoch; a strategy that diverges goes on, and shows it.

    Args:
        model: what the adversary was given; it is the caller's copy, and changed.
        strategy: what is trained and how.
        restricted: the adversary's training images.
        test: images of the same classes that accuracy is measured on.
        epochs: passes over ``restricted``.
        seed: of the redrawn head, the order and dropout: the same for every model that is compared.
    """
    device = model.device
    trained, optimizer = begin_fine_tuning(
        model, strategy, num_classes=restricted.num_classes, rng=generator(seed, "head")
    )
    stream = EpochStream(len(restricted), seed, "fine-tuning")
    num_steps = -(-len(restricted) // strategy.batch_size)
    for epoch in range(epochs):
        losses = []
        with seeded(seed, "epoch", epoch, device=device):
            for step in range(epoch * num_steps, (epoch + 1) * num_steps):
                indices = stream.at(step * strategy.batch_size, strategy.batch_size)
                batch = read_batch(restricted, indices, device=device)
                loss = F.cross_entropy(model(batch.images), batch.labels)
                for parameter, grad in zip(
                    trained, torch.autograd.grad(loss, trained), strict=True
                ):
                    parameter.grad = grad
                optimizer.step()
                losses.append(loss.detach())
        mean_loss = torch.stack(losses).mean().item()
        yield FineTuningMetrics(epoch, mean_loss, accuracy(model, test, device=device))
