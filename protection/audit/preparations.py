"""Preparations: what an adversary does to a model before fine-tuning it, to be rid of a protection.

Every start of an audit is prepared alike, so that all of them cost the same. Healing a from-scratch
model is plain training on those images; so is distilling it, for it has nothing to teach.
"""

import copy
from collections.abc import Callable
from typing import Final, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from protection.audit.attacks import IMAGES_FOR, Setup
from protection.audit.epochs import Epochs, descend
from protection.batches import Batch, Images
from protection.layers import weight_matrices
from protection.models import redrawn_head, replace_head
from protection.seeds import generator, seeded

Had = TypeVar("Had")

# Of Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015.
_TEMPERATURE: Final = 4.0


def _none(setup: Setup) -> None:
    """Fine-tune the model as it was published."""


def _heal_original(setup: Setup) -> None:
    """Fine-tune on original images first: what protects may be forgotten, what is useful not."""
    images = _images(setup)
    _train(setup, images, lambda batch: F.cross_entropy(setup.model(batch.images), batch.labels))


def _heal_unrelated(setup: Setup) -> None:
    """Fine-tune on images of an unrelated domain first, with a head that is thrown away then."""
    model, own = setup.model, setup.model.head
    images = _images(setup)
    rng = generator(setup.seed, "preparation", "head")
    replace_head(model, redrawn_head(model, num_classes=images.num_classes, rng=rng))
    _train(setup, images, lambda batch: F.cross_entropy(model(batch.images), batch.labels))
    replace_head(model, own)


def _distill(setup: Setup) -> None:
    """Teach a new network what the model says of original images, and go on with that one.

    A from-scratch model says nothing: there the labels are learned instead.
    """
    images, fresh = _images(setup), _required(setup, "fresh", setup.means.fresh)
    model, teacher = setup.model, copy.deepcopy(setup.model).eval()
    model.load_state_dict(fresh().state_dict())

    def loss(batch: Batch) -> Tensor:
        logits = model(batch.images)
        if setup.means.is_scratch:
            return F.cross_entropy(logits, batch.labels)
        with torch.no_grad():
            taught = (teacher(batch.images) / _TEMPERATURE).log_softmax(dim=-1)
        learned = (logits / _TEMPERATURE).log_softmax(dim=-1)
        divergence = F.kl_div(learned, taught, reduction="batchmean", log_target=True)
        return _TEMPERATURE**2 * divergence

    _train(setup, images, loss)


@torch.no_grad()
def _prune(setup: Setup) -> None:
    """Set the smallest weights of every layer to zero; fine-tuning may bring them back.

    Source: Han et al., Learning both Weights and Connections, 2015.
    """
    share = cast(float, setup.attack.pruned_share)
    for module, name in weight_matrices(setup.model.network):
        weight = getattr(module, name)
        num_pruned = round(share * weight.numel())
        is_pruned = torch.zeros(weight.numel(), dtype=torch.bool, device=weight.device)
        is_pruned[weight.abs().flatten().argsort(stable=True)[:num_pruned]] = True
        weight.masked_fill_(is_pruned.view(weight.shape), 0)


@torch.no_grad()
def _int8(setup: Setup) -> None:
    """Round every weight to 8 bits, symmetric, with a scale for each output channel, and back."""
    for module, name in weight_matrices(setup.model.network):
        weight = getattr(module, name)
        scale = weight.abs().amax(dim=tuple(range(1, weight.ndim)), keepdim=True) / 127
        weight.copy_(torch.where(scale > 0, (weight / scale).round() * scale, weight))


def _train(setup: Setup, images: Images, loss_of: Callable[[Batch], Tensor]) -> None:
    """Train all layers by Adam, whatever the attack's optimizer: its rate would be another."""
    attack, model, device = setup.attack, setup.model, setup.model.device
    trained = list(model.parameters())
    optimizer = torch.optim.Adam(trained, lr=cast(float, attack.preparation_lr))
    everything = torch.arange(len(images))
    epochs = Epochs(images, everything, attack.batch_size, (setup.seed, "preparation"))
    model.train()
    for epoch in range(cast(int, attack.preparation_epochs)):
        with seeded(setup.seed, "preparation", epoch, device=device):
            for _, batch in epochs.batches(epoch, device=device):
                descend(optimizer, trained, loss_of(batch))


def _images(setup: Setup) -> Images:
    """Images of the domain that the preparation trains on."""
    name = IMAGES_FOR[setup.attack.preparation]
    images: Images | None = getattr(setup.means, name)
    return _required(setup, name, images)


def _required(setup: Setup, name: str, value: Had | None) -> Had:
    if value is None:
        raise ValueError(
            f"{name} is None, but preparation is {setup.attack.preparation!r}; expected {name} "
            "among the adversary's means"
        )
    return value


PREPARATIONS: Final[dict[str, Callable[[Setup], None]]] = {
    "none": _none,
    "heal_original": _heal_original,
    "heal_unrelated": _heal_unrelated,
    "distill": _distill,
    "prune": _prune,
    "int8": _int8,
}
