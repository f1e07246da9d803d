"""Denoisers as recipes describe them, and as diffusers writes them."""

import os
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from protection.denoisers import Denoiser, DenoiserConfig, build_denoiser, from_blueprint
from protection.models import load_weights
from tests.conftest import tiny_denoiser


def a_config(**changes: object) -> DenoiserConfig:
    values = {"image_size": 16, "channels": 1, "block_out_channels": [8, 12, 16]}
    return DenoiserConfig(**{**values, "layers_per_block": 1, "attention_sizes": [8], **changes})


def test_a_described_denoiser_is_the_unet_of_its_fields() -> None:
    model = build_denoiser(a_config(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2"))
    unet = model.network.config
    assert unet.down_block_types == ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]
    assert unet.up_block_types == ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]
    assert unet.norm_num_groups == 4  # 12 channels are no multiple of 8
    assert model.alphas_cumprod.shape == (50,)
    expected = DDPMScheduler(num_train_timesteps=50, beta_schedule="squaredcos_cap_v2")
    assert torch.equal(model.alphas_cumprod, expected.alphas_cumprod)
    noisy = torch.randn(2, 1, 16, 16)
    assert model(noisy, torch.tensor([0, 49])).shape == noisy.shape
    assert not any("alphas" in name for name in model.state_dict())


def test_a_blueprint_builds_the_same_denoiser_again() -> None:
    model = tiny_denoiser().eval()
    again = from_blueprint(model.blueprint).eval()
    assert again.blueprint == model.blueprint
    load_weights(again, model.network.state_dict(), source="here")
    noisy, timesteps = torch.randn(2, 1, 8, 8), torch.tensor([3, 19])
    assert torch.equal(again(noisy, timesteps), model(noisy, timesteps))
    with pytest.raises(ValueError, match=r"missing \['conv_in.bias'"):
        load_weights(again, {}, source="there")


def test_a_pipeline_of_diffusers_is_taken_with_its_weights_and_schedule(tmp_path: Path) -> None:
    network = tiny_denoiser().network
    schedule = DDIMScheduler(num_train_timesteps=30, beta_schedule="scaled_linear")
    DDPMPipeline(network, DDPMScheduler.from_config(schedule.config)).save_pretrained(tmp_path)
    model = build_denoiser(DenoiserConfig(image_size=8, source=str(tmp_path)))
    assert model.alphas_cumprod.tolist() == schedule.alphas_cumprod.tolist()
    for ours, theirs in zip(model.network.parameters(), network.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"a UNet2DModel of 8 pixels, and image_size is 16"):
        build_denoiser(DenoiserConfig(image_size=16, source=str(tmp_path)))


def test_a_source_that_is_no_pipeline_or_a_pickle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"source is .*, which diffusers cannot load"):
        build_denoiser(DenoiserConfig(image_size=8, source=str(tmp_path)))
    DDPMPipeline(tiny_denoiser().network, DDPMScheduler()).save_pretrained(
        tmp_path, safe_serialization=False
    )
    assert any(name.endswith(".bin") for name in os.listdir(tmp_path / "unet"))
    with pytest.raises(ValueError, match=r"expected a folder that it wrote.*safetensors"):
        build_denoiser(DenoiserConfig(image_size=8, source=str(tmp_path)))


def test_a_network_that_predicts_something_else_is_refused() -> None:
    network: UNet2DModel = tiny_denoiser().network
    with pytest.raises(ValueError, match=r"prediction_type is 'v_prediction'.*'epsilon'"):
        Denoiser(network, DDPMScheduler(prediction_type="v_prediction"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_out_channels": []}, r"block_out_channels is \[\]"),
        ({"image_size": 10}, r"image_size is 10, but the 3 levels.*a multiple of 4"),
        ({"attention_sizes": [5]}, "attention_sizes has 5, but the levels have 16, 8, 4 pixels"),
        ({"channels": 2}, "channels is 2; expected 3, or 1"),
        ({"layers_per_block": 0}, "layers_per_block is 0"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"beta_schedule": "cosine"}, "beta_schedule is 'cosine'.*squaredcos_cap_v2"),
        ({"source": "a/b"}, "channels is 1, but source is a/b, which says it itself"),
    ],
)
def test_bad_denoiser_config_names_value_and_fix(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        a_config(**change)
