"""What an appropriator does against the protection of the images that it trains on, by name.

A *purification* changes every image once, the same way each time. An *augmentation* changes every
training batch anew, at random. A protection is worth what the strongest of them leaves of it.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import torch
from torch import Tensor

from protection.audit import augmentation, purification
from protection.batches import Images
from protection.training import Augmentation, EpochMetrics, TrainingConfig, TrainingState, train

Purification = Callable[[Tensor], Tensor]
"""From ``(B, C, H, W)`` uint8 to the same shape and dtype, each image by itself."""

# Images that are purified together: large enough that Python is not what takes the time.
_BLOCK_SIZE: Final = 256


class Countermeasure(NamedTuple):
    """What is done to the images, and what to every batch; None: nothing."""

    purify: Purification | None = None
    augment: Augmentation | None = None


COUNTERMEASURES: Final[dict[str, Countermeasure]] = {
    "none": Countermeasure(),
    "jpeg_10": Countermeasure(purify=functools.partial(purification.jpeg, quality=10)),
    "jpeg_30": Countermeasure(purify=functools.partial(purification.jpeg, quality=30)),
    "jpeg_50": Countermeasure(purify=functools.partial(purification.jpeg, quality=50)),
    "jpeg_70": Countermeasure(purify=functools.partial(purification.jpeg, quality=70)),
    "jpeg_90": Countermeasure(purify=functools.partial(purification.jpeg, quality=90)),
    "greyscale": Countermeasure(purify=purification.greyscale),
    "bit_depth_2": Countermeasure(purify=functools.partial(purification.bit_depth, bits=2)),
    "bit_depth_4": Countermeasure(purify=functools.partial(purification.bit_depth, bits=4)),
    "gaussian_blur": Countermeasure(purify=purification.gaussian_blur),
    "median_blur": Countermeasure(purify=purification.median_blur),
    "resize_half": Countermeasure(purify=purification.resize_half),
    "cutout": Countermeasure(augment=augmentation.cutout),
    "mixup": Countermeasure(augment=augmentation.mixup),
    "cutmix": Countermeasure(augment=augmentation.cutmix),
    "randaugment": Countermeasure(augment=augmentation.randaugment),
    "adversarial_training_2": Countermeasure(
        augment=functools.partial(augmentation.adversarial_training, epsilon_levels=2)
    ),
    "adversarial_training_4": Countermeasure(
        augment=functools.partial(augmentation.adversarial_training, epsilon_levels=4)
    ),
}


def appropriate(
    state: TrainingState,
    images: Images,
    test: Images,
    *,
    config: TrainingConfig,
    countermeasure: str,
) -> Iterator[EpochMetrics]:
    """Train on ``images`` under a countermeasure, epoch by epoch, in ``state``'s model.

    Args:
        state: of `start_training`.
        images: protected or not.
        test: clean images. A purification is applied to them, too: what it leaves of an image is
            all that the model ever saw, so the appropriator does the same to what it classifies.
        config: of the training.
        countermeasure: name in `COUNTERMEASURES`.

    Returns:
        What each epoch showed; its ``validation_accuracy`` is on ``test``.

    Raises:
        NonFiniteError: the training diverged.
    """
    chosen = COUNTERMEASURES[countermeasure]
    if chosen.purify is not None:
        images, test = (PurifiedImages(each, chosen.purify) for each in (images, test))
    yield from train(state, images, test, config=config, augment=chosen.augment)


class PurifiedImages:
    """Another image set, purified: all of it at once if that fits memory, else as it is read.

    All at once, because training reads every image in every epoch.
    """

    def __init__(self, images: Images, purify: Purification, *, cache_bytes: int = 2**31) -> None:
        """Purify ``images``, and keep them if they take at most ``cache_bytes``."""
        self.labels, self.num_classes = images.labels, images.num_classes
        self._images, self._purify = images, purify
        self._kept: Tensor | None = None
        image_shape = images.read(torch.tensor([0])).shape[1:]
        if len(images) * image_shape.numel() <= cache_bytes:
            self._kept = torch.empty((len(images), *image_shape), dtype=torch.uint8)
            for block in torch.split(torch.arange(len(images)), _BLOCK_SIZE):
                self._kept[block] = purify(images.read(block))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def read(self, indices: Tensor) -> Tensor:
        """Return ``(B, C, H, W)`` uint8 images, purified."""
        if self._kept is None:
            return self._purify(self._images.read(indices))
        return self._kept[indices]
