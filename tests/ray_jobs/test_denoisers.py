"""A diffusion model through the jobs: trained, protected, and loaded by diffusers alone."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from protection.denoisers import Denoiser, DenoiserConfig
from protection.models import ModelConfig
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from protection.training import TrainingConfig
from ray_jobs import copy_commit, pretrain, protect_model
from ray_jobs.copy_commit import Copy
from ray_jobs.model_files import describe, model_from
from ray_jobs.pipeline_files import INDEX, write_pipeline
from ray_jobs.pretrain import Pretrain
from ray_jobs.protect_model import ProtectModel
from storage.commit import read_manifest
from tests.ray_jobs.conftest import ORIGINAL, RESTRICTED, run_here

TINY = DenoiserConfig(
    image_size=8,
    channels=1,
    block_out_channels=[8, 16],
    layers_per_block=1,
    num_train_timesteps=20,
)
FEW = {"max_train_images": 60, "max_test_images": 40}
TRAINING = TrainingConfig(
    epochs=2, batch_size=32, optimizer="adam", learning_rate=0.002, weight_decay=0.0
)
SOPHON = SophonConfig(
    rounds=2,
    episode_length=2,
    query_size=8,
    adversary=[StrategyFamily(batch_sizes=[16], finetune_lrs=[0.01])],
    suppression_loss="denial_of_service",
    suppression_lr=1e-4,
    reinforcement_batch_size=16,
)


def training_job(output: Path) -> Pretrain:
    original = dataclasses.replace(ORIGINAL, **FEW)
    return Pretrain(denoiser=TINY, original=original, output=str(output), training=TRAINING)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    job = training_job(tmp_path_factory.mktemp("denoisers") / "model")
    return run_here(job, pretrain.train_loop_per_worker, verb="pretrain")


@pytest.fixture(scope="module")
def protected(trained: Path) -> Path:
    job = protection_job(str(trained), trained.parent / "protected")
    return run_here(job, protect_model.train_loop_per_worker, verb="protect-model")


def protection_job(model: str, output: Path, **changes: object) -> ProtectModel:
    values = {
        "model": model,
        "original": dataclasses.replace(ORIGINAL, **FEW),
        "restricted": [dataclasses.replace(RESTRICTED, **FEW)],
        "output": str(output),
        "sophon": SOPHON,
    }
    return ProtectModel(**{**values, **changes})


def test_a_denoiser_is_committed_with_all_that_builds_it_again(trained: Path) -> None:
    description = describe(str(trained))
    assert description.task.name == "denoising"
    assert description.model_classes is None
    assert description.class_names == ["0", "1", "2", "3", "4"]
    model = model_from(description, weights=str(trained))
    assert isinstance(model, Denoiser)
    assert len(model.alphas_cumprod) == 20
    metrics = read_manifest(str(trained)).description["metrics"]
    assert metrics.keys() == {"validation_accuracy", "test_accuracy"}


def test_protection_changes_the_weights_and_measures_both(trained: Path, protected: Path) -> None:
    before, after = (
        model_from(describe(str(location)), weights=str(location)).network.state_dict()
        for location in (trained, protected)
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    known = read_manifest(str(protected)).description["metrics"]
    assert known["protected_test_accuracy"] != known["unprotected_test_accuracy"]


def test_diffusers_loads_the_protected_model_without_ringfence(protected: Path) -> None:
    program = """
import sys
from diffusers import DDIMPipeline, DDPMPipeline
pipeline = DDPMPipeline.from_pretrained(sys.argv[1], use_safetensors=True)
images = pipeline(batch_size=2, num_inference_steps=2, output_type="np").images
assert images.shape == (2, 8, 8, 1), images.shape
assert DDIMPipeline.from_pretrained(sys.argv[1]).unet.config.sample_size == 8
assert not {"protection", "storage", "ray_jobs", "ray"} & set(sys.modules)
print(sum(p.detach().double().sum().item() for p in pipeline.unet.parameters()))
"""
    command = [sys.executable, "-W", "ignore", "-c", program, str(protected)]
    shown = subprocess.run(
        command, cwd=protected.parent, env={}, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    ours = model_from(describe(str(protected)), weights=str(protected))
    total = sum(p.detach().double().sum().item() for p in ours.parameters())
    assert float(shown.stdout) == pytest.approx(total, rel=1e-9)


def test_a_copy_is_a_pipeline_too_and_a_lost_file_comes_back(
    protected: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy_commit.run(Copy(str(protected), str(copy)))
    files = {path.relative_to(copy) for path in copy.rglob("*") if path.is_file()}
    assert files == {path.relative_to(protected) for path in protected.rglob("*") if path.is_file()}
    before = (copy / INDEX).read_bytes()
    (copy / INDEX).unlink()
    write_pipeline(str(copy))
    assert (copy / INDEX).read_bytes() == before


def test_a_file_of_weights_is_protected_by_its_description(trained: Path, tmp_path: Path) -> None:
    model = model_from(describe(str(trained)), weights=str(trained))
    file = tmp_path / "unet.safetensors"
    save_file({name: t.contiguous() for name, t in model.network.state_dict().items()}, file)
    job = protection_job(str(file), tmp_path / "out", denoiser=TINY)
    opened = protect_model._open(job)
    assert opened.description.config == describe(str(trained)).config
    with pytest.raises(ValueError, match=r"unet.safetensors, which does not say what network"):
        dataclasses.replace(job, denoiser=None)
    with pytest.raises(ValueError, match=r"network and denoiser are both given, but .*unet"):
        dataclasses.replace(job, network=ModelConfig(architecture="timm/resnet18", image_size=8))
    with pytest.raises(ValueError, match=r"denoiser is given, but model is .*expected denoiser: n"):
        protection_job(str(trained), tmp_path / "out", denoiser=TINY)
    with pytest.raises(ValueError, match="'kl_to_uniform', but the model's task is denoising"):
        protect_model._open(
            protection_job(
                str(trained),
                tmp_path / "out",
                sophon=dataclasses.replace(SOPHON, suppression_loss="kl_to_uniform"),
            )
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"denoiser": None}, "model and denoiser are both null; expected exactly one"),
        (
            {"model": ModelConfig(architecture="timm/resnet18", image_size=8)},
            "model and denoiser are both given; expected exactly one",
        ),
        ({"trajectory_checkpoints": 2}, "trajectory_checkpoints is 2, but a denoiser has no class"),
        (
            {"training": TrainingConfig(label_smoothing=0.1)},
            "training.label_smoothing is 0.1, but a denoiser has no classes",
        ),
    ],
)
def test_a_training_of_two_models_or_none_is_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(training_job(tmp_path), **change)
