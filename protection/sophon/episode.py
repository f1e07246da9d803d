"""One simulated fine-tuning, in place, and the gradient it sends back to the weights it began from.

SOPHON, equation of fine-tuning suppression, with ``theta_k = theta_{k-1} - finetune_lr * grad
L_task(theta_{k-1}; support_k)``, where ``L_task`` is the cross-entropy of a classifier::

    L_FTS(theta) = 1/K * sum_{k=1..K} L_suppression(theta_k; query_k)

First order: ``d theta_k / d theta`` is the identity, so the gradient of the k-th term is that of
the suppression loss at the adapted weights, and can be taken and added up as soon as step k is
done. Nothing of step k outlives it.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from protection.batches import Batch, Images, read_batch
from protection.gradients import batch_gradient
from protection.preservation import preserved
from protection.released import ReleasedModel
from protection.savings import ROOMY, MemoryConfig
from protection.seeds import generator, seeded
from protection.sophon.adversary import Strategy
from protection.sophon.fine_tuning import begin_fine_tuning
from protection.tasks import Loss
from protection.workers import ALONE, Workers


class Episode(NamedTuple):
    """What one simulated adversary does: all that is random in it follows from ``seed``."""

    seed: int
    restricted: Images
    strategy: Strategy
    length: int
    query_size: int


class EpisodeOutcome(NamedTuple):
    """What the query batches showed; still on the device: reading it is what waits for it."""

    query_losses: Tensor
    """``(K,)`` suppression loss after each fine-tuning step."""
    finetuned_accuracy: Tensor
    """Accuracy on the last query batch, as the model's task defines it."""


def simulate(
    model: ReleasedModel,
    episode: Episode,
    *,
    suppression_loss: Loss,
    gradient: Sequence[Tensor],
    memory: MemoryConfig = ROOMY,
    group: Workers = ALONE,
) -> EpisodeOutcome:
    """Fine-tune ``model`` and add the gradient of the mean query loss to ``gradient``.

    Parameters, buffers, mode and the global generators are bit-identical afterwards. Memory does
    not depend on the length: one copy of the model's state, the adversary's optimizer, and the
    activations of one batch.

    Args:
        model: fine-tuned in place and restored.
        episode: data, strategy and seed.
        suppression_loss: of what the model answers to query examples, and their targets.
        gradient: accumulators, one for each of ``model.parameters()``, in that order; float64 keeps
            the sum independent of the order of episodes. A redrawn head is the adversary's: nothing
            is added for the head it replaces.
        memory: what is saved, and how.
        group: workers over which the model is in parts; all of them must call it.

    Source: SOPHON, fine-tuning suppression, first-order approximation.
    Differs: the released code keeps the graphs of all K query losses and back-propagates once.
    """
    device = model.device
    accumulators = dict(zip(model.parameters(), gradient, strict=True))
    gradient_of = functools.partial(batch_gradient, num_parts=memory.batch_parts, group=group)
    losses, accuracy = [], torch.zeros((), device=device)
    with (
        preserved(model, in_host_memory=memory.host_copies),
        seeded(episode.seed, "episode", device=device),
    ):
        fine_tuning = begin_fine_tuning(
            model,
            episode.strategy,
            num_classes=episode.restricted.num_classes,
            rng=generator(episode.seed, "head"),
        )
        queried = [parameter for parameter in model.parameters() if parameter in accumulators]
        for step, (support, query) in enumerate(draw_batches(episode, device=device)):
            key = (episode.seed, "support", step)
            examples = model.examples(support, *key)
            wanted, loss_of = fine_tuning.wanted, model.task.loss
            fine_tuning.step(gradient_of(model, examples, loss_of, wanted, key=key).grads)

            key = (episode.seed, "query", step)
            examples = model.examples(query, *key)
            answer = gradient_of(model, examples, suppression_loss, queried, key=key)
            for parameter, grad in zip(queried, answer.grads, strict=True):
                accumulators[parameter].add_(grad, alpha=1 / episode.length)
            losses.append(answer.loss)
            accuracy = answer.accuracy
            del answer  # or its gradients are held beside those of the next step
    return EpisodeOutcome(torch.stack(losses), accuracy)


def draw_batches(episode: Episode, *, device: torch.device) -> Iterable[tuple[Batch, Batch]]:
    """Support and query of each step: disjoint, drawn anew every step."""
    support_size, query_size = episode.strategy.batch_size, episode.query_size
    rng = generator(episode.seed, "batches")
    for _ in range(episode.length):
        order = torch.randperm(len(episode.restricted), generator=rng)
        batch = read_batch(episode.restricted, order[: support_size + query_size], device=device)
        yield (
            Batch(batch.images[:support_size], batch.labels[:support_size]),
            Batch(batch.images[support_size:], batch.labels[support_size:]),
        )
