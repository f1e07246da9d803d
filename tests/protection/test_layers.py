"""Stages of networks, whatever library they come from."""

import pytest
import torch

from protection.layers import blocks, stages, weight_matrices
from protection.models import Classifier, ModelConfig, build_model
from tests.conftest import tiny_classifier

# Last stage: the parts of the network whose tensors it has.
LAST = {
    "timm/resnet18": ["layer4"],
    "timm/vit_tiny_patch16_224": ["blocks.11", "norm"],
    "timm/convnext_atto": ["stages.3", "head.norm"],
    "timm/caformer_s18": ["stages.3", "head.norm", "head.fc.fc1", "head.fc.norm"],
    "timm/densenet121": ["features.denseblock4", "features.norm5"],
    "timm/vgg11": ["pre_logits"],
    "timm/swin_tiny_patch4_window7_224": ["layers.3", "norm"],
    "torchvision/resnet50": ["layer4"],
    "torchvision/vit_b_16": ["encoder.layers.encoder_layer_11", "encoder.ln"],
    "torchvision/convnext_tiny": ["features.7", "classifier.0"],
    "torchvision/densenet121": ["features.denseblock4", "features.norm5"],
    "torchvision/vgg11": ["classifier.3"],
    "torchvision/efficientnet_b0": ["features.8"],
}


def structure(architecture: str) -> Classifier:
    """A network at full size, without memory for its weights."""
    with torch.device("meta"):
        return build_model(ModelConfig(architecture=architecture, image_size=224), num_classes=7)


@pytest.mark.parametrize("architecture", LAST)
def test_stages_part_every_network_and_end_where_its_body_ends(architecture: str) -> None:
    model = structure(architecture)
    found = stages(model)
    assert len(found) >= 4
    names = [name for stage in found for name in stage]
    head = {n for n in model.network.state_dict() if n.startswith(f"{model.head_name}.")}
    assert sorted(names) == sorted(model.network.state_dict().keys() - head)
    assert len(set(names)) == len(names)
    parts = [f"{part}." for part in LAST[architecture]]
    assert all(name.startswith(tuple(parts)) for name in found[-1])
    assert all(any(name.startswith(part) for name in found[-1]) for part in parts)
    # From the first to the last, in the order of the network.
    order = {name: index for index, name in enumerate(model.network.state_dict())}
    starts = [max(order[name] for name in stage) for stage in found]
    assert starts == sorted(starts)


def test_tensors_of_no_part_belong_to_the_first_stage() -> None:
    first = stages(structure("timm/vit_tiny_patch16_224"))[0]
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight"} <= set(first)


def test_a_network_inside_another_module_has_the_same_stages() -> None:
    inner = structure("timm/resnet18").network
    wrapped = torch.nn.Module()
    wrapped.net = inner
    found = stages(Classifier(wrapped, num_classes=7))
    assert found == [
        [f"net.{name}" for name in stage] for stage in stages(Classifier(inner, num_classes=7))
    ]


def test_a_network_without_stages_is_one_and_a_bare_head_none() -> None:
    (only,) = stages(tiny_classifier())
    assert {name.partition(".")[0] for name in only} == {"conv", "norm"}
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    assert stages(Classifier(bare, num_classes=3)) == []


@pytest.mark.parametrize(
    ("architecture", "kind", "number"),
    [
        ("timm/vit_tiny_patch16_224", "Block", 12),
        ("timm/resnet50", "Bottleneck", 16),
        ("timm/caformer_s18", "MetaFormerBlock", 18),
        ("timm/convnext_tiny", "ConvNeXtBlock", 18),
        ("timm/swin_tiny_patch4_window7_224", "SwinTransformerBlock", 12),
        ("timm/densenet121", "DenseLayer", 58),
        ("timm/vgg11", "", 0),
        ("torchvision/vit_b_16", "EncoderBlock", 12),
    ],
)
def test_blocks_are_what_a_network_repeats(architecture: str, kind: str, number: int) -> None:
    found = blocks(structure(architecture))
    assert [type(block).__name__ for block in found] == [kind] * number
    assert len(set(found)) == number


def test_weight_matrices_are_those_of_layers_and_attention() -> None:
    def names(architecture: str) -> set[str]:
        network = structure(architecture).network
        modules = {module: name for name, module in network.named_modules()}
        return {f"{modules[module]}.{name}" for module, name in weight_matrices(network)}

    resnet = names("torchvision/resnet18")
    assert {"conv1.weight", "layer4.1.conv2.weight", "fc.weight"} <= resnet
    assert not any("bn" in name for name in resnet)
    layer = "encoder.layers.encoder_layer_0"
    assert {
        f"{layer}.self_attention.in_proj_weight",
        f"{layer}.self_attention.out_proj.weight",
        f"{layer}.mlp.0.weight",
    } <= names("torchvision/vit_b_16")
