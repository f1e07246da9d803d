"""A domain in a recipe, and the train, validation and test images it stands for."""

import dataclasses
from dataclasses import dataclass
from typing import Final, NamedTuple

from ray_jobs.image_sets import ImageSetConfig, absolute_root, absolute_source, open_set
from storage.datasets import ImageDataset, validation_split

# Not a recipe field: every job must hold out the same images, or validation would see training
# images.
_SPLIT_SEED: Final = 0


@dataclass(frozen=True, kw_only=True)
class DomainConfig:
    """Images of one domain."""

    train: str
    """Training images: Parquet file, folder or S3 prefix; folder of class folders;
    torchvision/NAME:train; digits:train."""
    test: str
    """Test images, likewise; read once, at the end."""
    classes: list[int | str] | None = None
    """Classes to keep, by number or name, renumbered in this order; null: all."""
    max_train_images: int | None = None
    """Training images to use, drawn evenly from the classes; null: all."""
    max_test_images: int | None = None
    """Test images to use, likewise."""
    validation_share: float = 0.1
    """Share of the training images that no job trains on and every choice is made on."""
    download: bool = False
    """Download a torchvision dataset that is not there."""
    root: str | None = None
    """Where torchvision datasets are kept; null: ~/.cache/ringfence."""

    def __post_init__(self) -> None:
        """Reject values that no domain can have."""
        if not 0 < self.validation_share < 1:
            raise ValueError(
                f"validation_share is {self.validation_share}, a share; expected between 0 and 1"
            )
        for name in ("max_train_images", "max_test_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1, or null for all")


def absolute(config: DomainConfig) -> DomainConfig:
    """``config`` with absolute local paths: workers have other working directories."""
    return dataclasses.replace(
        config,
        train=absolute_source(config.train),
        test=absolute_source(config.test),
        root=absolute_root(config.root),
    )


class Domain(NamedTuple):
    """The images of a domain, each in exactly one of the three sets."""

    train: ImageDataset
    validation: ImageDataset
    test: ImageDataset


def open_domain(config: DomainConfig, *, image_size: int) -> Domain:
    """Open the sets of a domain; images are decoded as they are read.

    Raises:
        StorageError: a set is missing, empty or corrupt.
        ValueError: train and test do not have the same classes.
    """

    def of(source: str, max_images: int | None) -> ImageDataset:
        images = ImageSetConfig(
            source=source,
            classes=config.classes,
            max_images=max_images,
            download=config.download,
            root=config.root,
        )
        return open_set(images, image_size=image_size)

    images = of(config.train, config.max_train_images)
    test = of(config.test, config.max_test_images)
    if images.num_classes != test.num_classes:
        raise ValueError(
            f"{config.test} has {test.num_classes} classes, but {config.train} has "
            f"{images.num_classes}; expected the same classes in both"
        )
    train, validation = validation_split(
        len(images), share=config.validation_share, seed=_SPLIT_SEED
    )
    return Domain(images.subset(train), images.subset(validation), test)


def digests(domain: Domain) -> dict[str, str]:
    """SHA-256 of what was trained on and tested on, for a manifest's provenance."""
    return {"train": domain.train.digest(), "test": domain.test.digest()}
