import dataclasses

import pytest
import torch
from torch import nn

from protection.models import (
    Classifier,
    ModelConfig,
    build_model,
    load_weights,
    redrawn_head,
    replace_head,
)
from tests.conftest import TinyNetwork, tiny_classifier
from tests.tiny_networks import IMAGE_SIZE, TINY, tiny_network


@pytest.mark.parametrize("name", TINY)
def test_every_network_has_a_head_that_sees_its_features(name: str) -> None:
    model = tiny_network(name, num_classes=7).eval()
    pixels = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE)
    features = model.features(pixels)
    assert features.shape == (2, model.head.in_features)
    assert model.num_classes == 7
    torch.testing.assert_close(model.head(features), model(pixels))
    replace_head(model, redrawn_head(model, num_classes=4, rng=torch.Generator()))
    assert model(pixels).shape == (2, 4)


def test_network_with_a_second_head_is_refused() -> None:
    config = ModelConfig(architecture="timm/deit_tiny_distilled_patch16_224", image_size=224)
    with pytest.raises(ValueError, match="has a second head, head_dist"), torch.device("meta"):
        build_model(config, num_classes=3)


def test_normalisation_is_inside_the_model_and_not_among_the_weights() -> None:
    network = TinyNetwork()
    model = Classifier(
        network, num_classes=3, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.1, 0.2, 0.3)
    )
    images = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack(
        [(images[:, c] - m) / s for c, (m, s) in enumerate([(0.5, 0.1), (0.4, 0.2), (0.3, 0.3)])], 1
    )
    model.eval()
    torch.testing.assert_close(model(images), network(by_hand))
    assert "pixel_mean" not in model.state_dict()


def test_small_image_stem_keeps_the_resolution_of_small_images() -> None:
    for name, options in (
        ("timm/resnet18", {"channels": [8, 8, 8, 8]}),
        ("timm/resnet18", {"channels": [8, 8, 8, 8], "stem_type": "deep", "stem_width": 4}),
        ("torchvision/densenet121", {}),
    ):
        config = ModelConfig(
            architecture=name, image_size=32, options=options, small_image_stem=True
        )
        model = build_model(config, num_classes=2)
        (first, *_) = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        assert (first.kernel_size, first.stride) == ((3, 3), (1, 1))
        assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "timm/resnt18"}, r"'timm/resnt18'.*did you mean timm/resnet18"),
        ({"architecture": "torchvision/resnet19"}, r"'torchvision/resnet19'.*torchvision/resnet18"),
        ({"architecture": "resnet18"}, r"'resnet18'.*timm/NAME"),
        ({"architecture": "no.such.module:f"}, r"no\.such\.module:f.*PYTHONPATH"),
        ({"architecture": "builtins:dict"}, r"builtins:dict.*returned dict"),
        ({"options": {"depht": 3}}, r"depht.*keyword arguments of its constructor"),
        ({"options": {"num_classes": 3}}, "num_classes, which comes from the dataset"),
        ({"image_size": 0}, "image_size is 0"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, r"\(1.0, 0.0, 1.0\)"),
        ({"small_image_stem": True, "pretrained": True}, "both true"),
        (
            {"architecture": "timm/vit_tiny_patch16_224", "small_image_stem": True},
            "vit_tiny_patch16_224 does not begin with",
        ),
    ],
)
def test_bad_model_config_names_value_and_fix(change: dict[str, object], message: str) -> None:
    values = {"architecture": "timm/resnet18", "image_size": 32, **change}
    with pytest.raises(ValueError, match=message):
        build_model(ModelConfig(**values), num_classes=3)


def test_weights_of_another_class_count_are_refused_with_both_counts() -> None:
    weights = tiny_classifier(5).network.state_dict()
    with pytest.raises(
        ValueError, match=r"there has a head of shape \(5, 64\).*expected 3 classes"
    ):
        load_weights(tiny_classifier(3), weights, source="there")


def test_a_model_may_keep_its_head_whatever_the_weights_are_of() -> None:
    for weights in (
        tiny_classifier(5).network.state_dict(),
        tiny_classifier(3).network.state_dict(),
    ):
        model = tiny_classifier(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            model.head.weight.fill_(2.0)
        load_weights(model, weights, source="there", keeps_head=True)
        assert (model.head.weight == 2).all()
        assert torch.equal(model.network.conv.weight, weights["conv.weight"])
        del weights["conv.bias"]
        with pytest.raises(ValueError, match=r"missing \['conv.bias'\]"):
            load_weights(model, weights, source="there", keeps_head=True)


def test_weights_of_another_architecture_are_refused_by_name() -> None:
    weights = tiny_classifier().network.state_dict()
    weights["extra"] = weights.pop("conv.bias")
    with pytest.raises(ValueError, match=r"missing \['conv.bias'\], unexpected \['extra'\]"):
        load_weights(tiny_classifier(), weights, source="there")


def test_network_without_a_head_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no linear layer with 9 outputs .*\[3\]"):
        Classifier(TinyNetwork(3), num_classes=9)


def test_redrawn_head_depends_on_its_generator_alone() -> None:
    model = tiny_classifier()

    def draw(seed: int) -> nn.Linear:
        return redrawn_head(model, num_classes=6, rng=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(1).weight, draw(1).weight)
    assert not torch.equal(draw(1).weight, draw(2).weight)
    head = draw(1)
    reference = nn.Linear(head.in_features, 6)
    # Both are uniform on the same interval; 384 draws come within a twentieth of its ends.
    for ours, theirs in ((head.weight, reference.weight), (head.bias, reference.bias)):
        assert ours.abs().max() <= head.in_features**-0.5
        assert ours.shape == theirs.shape
    assert head.weight.abs().max() > 0.95 * head.in_features**-0.5
    replace_head(model, head)
    assert model.num_classes == 6


def test_config_is_frozen() -> None:
    config = ModelConfig(architecture="timm/resnet18", image_size=32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.image_size = 3  # type: ignore[misc]
