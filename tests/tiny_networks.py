"""Tiny instances of what people publish, each with all that its family can disturb in an episode:
norms of both kinds, dropout, stochastic depth.
"""

import torch
from timm.models.metaformer import (
    Attention,
    LayerNorm2dNoBias,
    LayerNormNoBias,
    MetaFormer,
    SepConv,
)
from timm.models.vgg import VGG
from torch.nn import BatchNorm2d

from protection.batches import TensorImages
from protection.models import Classifier, ModelConfig, build_model

IMAGE_SIZE = 32


def caformer(num_classes: int, **options: object) -> MetaFormer:
    """A CAFormer of four blocks; timm's own names fix the depths and widths."""
    return MetaFormer(
        num_classes=num_classes,
        depths=(1, 1, 1, 1),
        dims=(8, 8, 32, 32),
        token_mixers=[SepConv] * 2 + [Attention] * 2,
        norm_layers=[LayerNorm2dNoBias] * 2 + [LayerNormNoBias] * 2,
        **options,
    )


def vgg(num_classes: int, **options: object) -> VGG:
    """A VGG of three convolutions, each with its BatchNorm."""
    layers = [8, "M", 8, "M", 16, "M"]
    return VGG(layers, num_classes=num_classes, mlp_ratio=1 / 64, norm_layer=BatchNorm2d, **options)


TINY: dict[str, ModelConfig] = {
    name: ModelConfig(architecture=architecture, image_size=IMAGE_SIZE, options=options)
    for name, architecture, options in (
        ("caformer", "tests.tiny_networks:caformer", {"drop_path_rate": 0.2, "drop_rate": 0.1}),
        (
            "vit",
            "timm/vit_tiny_patch16_224",
            {
                "img_size": IMAGE_SIZE,
                "patch_size": 8,
                "depth": 2,
                "embed_dim": 16,
                "num_heads": 2,
                "drop_path_rate": 0.2,
                "proj_drop_rate": 0.1,
            },
        ),
        (
            "convnext",
            "timm/convnext_atto",
            {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8], "drop_path_rate": 0.2},
        ),
        (
            "swin",
            "timm/swin_tiny_patch4_window7_224",
            {
                "img_size": IMAGE_SIZE,
                "depths": [1, 1],
                "embed_dim": 12,
                "num_heads": [2, 2],
                "window_size": 4,
                "drop_path_rate": 0.2,
            },
        ),
        (
            "resnet",
            "timm/resnet18",
            {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "drop_path_rate": 0.2},
        ),
        (
            "densenet",
            "timm/densenet121",
            {"growth_rate": 4, "block_config": [1, 1, 1, 1], "drop_rate": 0.1},
        ),
        ("vgg", "tests.tiny_networks:vgg", {"drop_rate": 0.1}),
        (
            "senet",
            "timm/seresnet18",
            {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8], "drop_path_rate": 0.2},
        ),
        ("googlenet", "torchvision/googlenet", {"init_weights": False, "dropout": 0.1}),
    )
}


def tiny_network(
    name: str, *, num_classes: int = 3, seed: int = 5, dtype: torch.dtype = torch.float32
) -> Classifier:
    """One of `TINY` with weights drawn from ``seed``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(TINY[name], num_classes=num_classes).to(dtype)


def images(num_images: int = 24, *, num_classes: int = 3, seed: int = 0) -> TensorImages:
    """Noise in the size that they take; nothing is to be learnt from it."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randint(
        256, (num_images, 3, IMAGE_SIZE, IMAGE_SIZE), generator=rng, dtype=torch.uint8
    )
    return TensorImages(pixels, torch.arange(num_images) % num_classes, num_classes=num_classes)
