"""One set of labelled images in a recipe, and the dataset it stands for."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.datasets import ImageDataset


@dataclass(frozen=True, kw_only=True)
class ImageSetConfig:
    """Labelled images by name."""

    source: str
    """Parquet file, folder or S3 prefix; folder of class folders; committed dataset;
    torchvision/NAME:SPLIT; digits:train."""
    classes: list[int | str] | None = None
    """Classes to keep, by number or name, renumbered in this order; null: all."""
    max_images: int | None = None
    """Images to use, drawn evenly from the classes; null: all."""
    download: bool = False
    """Download a torchvision dataset that is not there."""
    root: str | None = None
    """Where torchvision datasets are kept; null: ~/.cache/ringfence."""

    def __post_init__(self) -> None:
        """Reject a set of no image."""
        if self.max_images is not None and self.max_images < 1:
            raise ValueError(
                f"max_images is {self.max_images}; expected at least 1, or null for all"
            )


def absolute_set(config: ImageSetConfig) -> ImageSetConfig:
    """``config`` with absolute local paths: workers have other working directories."""
    return dataclasses.replace(
        config, source=absolute_source(config.source), root=absolute_root(config.root)
    )


def absolute_source(source: str) -> str:
    """``source`` with an absolute path if it is one; names such as ``digits:train`` stay."""
    path = Path(source).expanduser()
    # Of a pattern such as data/train-*.parquet the folder exists.
    is_path = path.exists() or ("*" in path.name and path.parent.is_dir())
    return str(path.absolute()) if is_path else source


def absolute_root(root: str | None) -> str | None:
    """``root`` as an absolute path."""
    return None if root is None else str(Path(root).expanduser().absolute())


def open_set(config: ImageSetConfig, *, image_size: int) -> "ImageDataset":
    """Open the images; each is decoded when it is read.

    Raises:
        StorageError: the set is missing, empty or corrupt.
        ValueError: ``config`` asks for what the set does not have.
    """
    # Imported here: a command that only names images need not wait seconds for torch.
    from storage.datasets import open_dataset

    return open_dataset(
        config.source,
        image_size=image_size,
        classes=config.classes,
        max_images=config.max_images,
        download=config.download,
        root=config.root,
    )
