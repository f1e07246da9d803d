"""Augmentations: what an adversary does to every training batch anew, at random.

Each takes the model as it is now, a batch and a seed, and gives back the batch to train on. The
seed names all that is drawn: the global generators stay as they are.
"""

from typing import Final

import torch
from torch.nn import functional as F
from torchvision.transforms import v2

from protection.batches import Batch
from protection.models import Classifier
from protection.preservation import in_eval_mode
from protection.seeds import generator, seeded
from protection.sep.perturbation import project, signed_step, to_levels
from protection.training import Augmentation, crop_and_flip

# Five more passes, without weight gradients: four times the time of a plain training step. Madry et
# al. train with seven on CIFAR-10.
_PGD_STEPS: Final = 5


def cutout(model: Classifier, batch: Batch, seed: int) -> Batch:
    """Cut a square of half the image's side out of each image, at the edge a part of it.

    Source: DeVries, Taylor, Improved Regularization of CNNs with Cutout, 2017: the hole has the
        model's mean colour, which normalisation makes zero.
    """
    num_images, _, height, width = batch.images.shape
    side, rng = -(-min(height, width) // 2), generator(seed, "cutout")
    is_cut = torch.ones(num_images, 1, 1, 1, dtype=torch.bool)
    for size, shape in ((height, (-1, 1)), (width, (1, -1))):
        centre = torch.randint(size, (num_images, 1, 1, 1), generator=rng)
        offset = torch.arange(size).view(shape) - centre + side // 2
        is_cut = is_cut & (offset >= 0) & (offset < side)
    images = torch.where(is_cut.to(batch.images.device), model.pixel_mean, batch.images)
    return Batch(images, batch.labels)


def mixup(model: Classifier, batch: Batch, seed: int) -> Batch:
    """Mean of each image with another, and of their labels, by one random weight for the batch.

    Source: Zhang et al., mixup, 2018, with alpha 1.
    """
    return _mixed(v2.MixUp(alpha=1.0, num_classes=model.num_classes), batch, seed=seed)


def cutmix(model: Classifier, batch: Batch, seed: int) -> Batch:
    """Put a rectangle of another image into each; labels are weighed by area.

    Source: Yun et al., CutMix, 2019, with alpha 1.
    """
    return _mixed(v2.CutMix(alpha=1.0, num_classes=model.num_classes), batch, seed=seed)


def _mixed(transform: v2.Transform, batch: Batch, *, seed: int) -> Batch:
    with seeded(seed, "mixing", device=torch.device("cpu")):
        return Batch(*transform(batch.images, batch.labels))


def randaugment(model: Classifier, batch: Batch, seed: int) -> Batch:
    """Two random operations on each image: rotation, shear, colour, contrast and the like.

    Source: Cubuk et al., RandAugment, 2020, at torchvision's magnitude, 9 of 31.
    """
    del model
    transform = v2.RandAugment()
    with seeded(seed, "randaugment", device=torch.device("cpu")):
        images = torch.stack([transform(image) for image in to_levels(batch.images)])
    return Batch(images.to(batch.images.dtype) / 255, batch.labels)


def adversarial_training(
    model: Classifier, batch: Batch, seed: int, *, epsilon_levels: int
) -> Batch:
    """Move each image, within a budget, to where the model's loss is high: training on it follows.

    Args:
        model: as it is now, in eval mode: neither dropout nor BatchNorm's statistics take part.
        batch: images and labels; the labels stay.
        seed: of the start.
        epsilon_levels: l-infinity budget in 8-bit levels.

    Source: Madry et al., Towards Deep Learning Models Resistant to Adversarial Attacks, 2018:
        projected gradient ascent from a random start.
    """
    epsilon = epsilon_levels / 255
    # From any start every point of the budget can be reached: the steps' sum is 2.5 budgets.
    step_size = 2.5 * epsilon / _PGD_STEPS
    start = torch.rand(batch.images.shape, generator=generator(seed, "adversarial_training"))
    moved = batch.images + epsilon * (2 * start.to(batch.images) - 1)
    images = project(moved, batch.images, epsilon=epsilon)
    with in_eval_mode(model):
        for _ in range(_PGD_STEPS):
            images.requires_grad_()
            loss = F.cross_entropy(model(images), batch.labels)
            (gradient,) = torch.autograd.grad(loss, images)
            moved = signed_step(images.detach(), -gradient, step_size=step_size)
            images = project(moved, batch.images, epsilon=epsilon)
    return Batch(images, batch.labels)


def _none(model: Classifier, batch: Batch, seed: int) -> Batch:
    """Train on the images as they are."""
    del model, seed
    return batch


def _crop_and_flip(model: Classifier, batch: Batch, seed: int) -> Batch:
    del model
    return Batch(crop_and_flip(batch.images, seed=seed), batch.labels)


# What whoever fine-tunes a model may do; against protected images there are also purifications.
AUGMENTATIONS: Final[dict[str, Augmentation]] = {
    "none": _none,
    "crop_and_flip": _crop_and_flip,
    "cutout": cutout,
    "mixup": mixup,
    "cutmix": cutmix,
    "randaugment": randaugment,
}
