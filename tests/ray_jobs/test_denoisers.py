"""A diffusion model through the jobs: trained, protected, and loaded by diffusers alone."""

import copy
import dataclasses
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from protection.audit.attacks import Means
from protection.audit.families import AttackFamily
from protection.audit.fine_tuning import fine_tune
from protection.denoisers import Denoiser, DenoiserConfig
from protection.evaluation import accuracy
from protection.models import ModelConfig
from protection.sophon.adversary import StrategyFamily
from protection.sophon.config import SophonConfig
from protection.training import TrainingConfig
from ray_jobs import audit_model, card, copy_commit, pretrain, protect_model, quick_audit
from ray_jobs.audit_model import AuditModel
from ray_jobs.audited_models import resolve
from ray_jobs.card import Card
from ray_jobs.cluster import ClusterConfig
from ray_jobs.copy_commit import Copy
from ray_jobs.denoiser_cells import DenoisingAudit
from ray_jobs.errors import UsageError
from ray_jobs.model_files import describe, model_from
from ray_jobs.pipeline_files import INDEX, write_pipeline
from ray_jobs.pretrain import Pretrain
from ray_jobs.protect_model import ProtectModel
from ray_jobs.quick_audit import Attacked, QuickAudit, fine_tune_quickly, transfer_gains
from ray_jobs.reports.stored import PAGE_PART, read_report
from ray_jobs.runs import find_run
from storage.commit import read_manifest, read_part
from tests.conftest import random_images, tiny_denoiser
from tests.protection.audit.attacking import attack
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


@pytest.mark.timeout(300)  # another Python begins, and imports torch and diffusers
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
        command,
        cwd=protected.parent,
        env={"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
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


@pytest.fixture(scope="module")
def feature_network(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file of a tiny feature network."""
    path = str(tmp_path_factory.mktemp("features") / "features.pt")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    with warnings.catch_warnings():  # TorchScript is on its way out of torch
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, torch.rand(2, 3, 8, 8)), path)
    return path


def audit_job(protected: Path, output: Path, **changes: object) -> AuditModel:
    values = {
        "adversary": [
            AttackFamily(
                methods=["all_layers", "lora"],
                optimizers=["adam"],
                finetune_lrs=[0.003],
                batch_sizes=[32],
            )
        ],
        "epochs": 1,
        "seeds": [0],
        "denoising": DenoisingAudit(num_samples=3, sampling_steps=2),
    }
    return AuditModel(protected=str(protected), output=str(output), **{**values, **changes})


@pytest.fixture
def cells_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of an audit are run in this process."""

    def run_here(some, task, audited, **_):
        return {cell: json.loads(json.dumps(task(audited, cell))) for cell in some}

    monkeypatch.setattr(audit_model, "run_cells", run_here)
    monkeypatch.setattr(audit_model, "connect", lambda cluster: None)
    monkeypatch.setattr(audit_model, "_measure", lambda task, audited, cluster: task(audited))


@pytest.mark.usefixtures("cells_here")
def test_an_audit_shows_errors_distances_and_pictures(
    protected: Path, feature_network: str, tmp_path: Path
) -> None:
    denoising = DenoisingAudit(
        num_samples=3, sampling_steps=2, feature_network=feature_network, feature_samples=20
    )
    location = audit_model.run(audit_job(protected, tmp_path / "audit", denoising=denoising))
    stored = read_report(location)
    report = stored.report
    assert report["format"] == stored.manifest.kind == "denoiser-audit"
    assert [cell["facts"]["method"] for cell in report["cells"]].count("lora") == 1
    assert not any("redrawn_head" in name for name in report["not_tested"])
    assert "augmentation randaugment" in report["not_tested"]
    headline, original = report["headline"], report["original"]
    errors = headline["original_error"]
    assert headline["original_error_growth"] == pytest.approx(
        errors["protected"] / errors["unprotected"] - 1
    )
    for row in original.values():
        assert row.keys() == {"error_by_timestep", "fid", "kid"}
        assert len(row["error_by_timestep"]) == 10
    page = read_part(location, PAGE_PART).decode()
    assert "data:image/png;base64," in page
    assert "What the models draw" in page
    assert page.count("Mean squared error over 1 epochs") == 2
    for words in ("original, protected", "FID", "lora adam 0.003", "Error by noise level"):
        assert words in page
    assert "pixels" not in json.dumps(report["cells"])
    worst = report["cells"][0]
    shown = stored.view.tables[0].lines[0].values
    final = {start: worst["starts"][start]["final"]["mean"] for start in ("protected", "scratch")}
    assert f"{1 - final['protected']:.3f}" in shown
    assert f"{final['protected'] - final['scratch']:+.3f}" in shown
    assert f"{errors['protected']:.3f}" in card.run(Card(location))


@pytest.mark.usefixtures("cells_here")
def test_a_preset_is_what_a_denoiser_can_undergo_and_a_listed_attack_must_be(
    protected: Path, trained: Path, model: str, tmp_path: Path
) -> None:
    job = audit_job(protected, tmp_path / "audit", adversary=None, threat_model="default")
    (attacks,) = audit_model._plan(job, resolve(job)).values()
    assert {attack.method for attack in attacks} == {"all_layers", "lora"}
    assert len(attacks) >= 6
    benign = dataclasses.replace(job, benign=[RESTRICTED])
    _, by_default = audit_model._plan(benign, resolve(benign)).values()
    assert [str(one) for one in by_default] == ["all_layers sgd 0.01 batch 64"]
    for family, message in (
        (AttackFamily(methods=["head_only"]), "method is 'head_only', but denoising has no cl"),
        (AttackFamily(augmentations=["mixup"]), "augmentation is 'mixup', but denoising has no"),
        (AttackFamily(label_smoothings=[0.1]), r"label_smoothing is 0.1, but denoising has no"),
        (AttackFamily(preparations=["distill"]), "preparation is 'distill', but denoising"),
    ):
        with pytest.raises(ValueError, match=message):
            audit_model.run(dataclasses.replace(job, adversary=[family]))
    missing = DenoisingAudit(feature_network="/no/such/file.pt")
    with pytest.raises(UsageError, match=r"feature_network is /no/such/file.pt, which is no file"):
        audit_model.run(dataclasses.replace(job, denoising=missing))
    other = DenoisingAudit(feature_network=str(trained / "MANIFEST.json"))
    with pytest.raises(UsageError, match=r"MANIFEST.json, which torch.jit.load refuses"):
        audit_model.run(dataclasses.replace(job, denoising=other))
    of_classifier = audit_job(
        Path(model),
        tmp_path / "audit",
        unprotected=model,
        original=ORIGINAL,
        restricted=[RESTRICTED],
    )
    with pytest.raises(UsageError, match=r"denoising is given, but .* is a classifier"):
        audit_model.run(of_classifier)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"sampling_steps": 0}, "sampling_steps is 0"),
        ({"feature_samples": 1}, "feature_samples is 1; expected at least 2"),
    ],
)
def test_an_audit_that_draws_nothing_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenoisingAudit(**change)


def test_a_sweep_judges_a_denoiser_by_what_it_can_undergo(protected: Path) -> None:
    restricted = dataclasses.replace(RESTRICTED, **FEW)
    attacked = Attacked(str(protected), describe(str(protected)), (restricted,), 1, is_gpu=False)
    chosen = list(quick_audit._cells(attacked, QuickAudit()))
    assert [cell.attack.method for cell in chosen] == ["all_layers", "all_layers"]
    (given,), (scratch,) = (
        fine_tune_quickly(attacked, cell)
        for cell in (chosen[0], chosen[0]._replace(scratch="word"))
    )
    assert given["accuracy"] != scratch["accuracy"]
    none = QuickAudit(adversary=[AttackFamily(methods=["redrawn_head"])])
    run = find_run(audit_job(protected, protected.parent / "swept"), verb="audit-model")
    with pytest.raises(ValueError, match="has 1 attacks, and a model for denoising can undergo no"):
        transfer_gains(attacked, none, cluster=ClusterConfig(), own=run, shared=run)


@pytest.mark.parametrize("preparation", ["none", "heal_original", "prune", "int8"])
@pytest.mark.parametrize("method", ["all_layers", "lora"])
def test_every_attack_on_denoisers_changes_weights_and_keeps_diffusers_layers(
    method: str, preparation: str
) -> None:
    model, images = tiny_denoiser(), random_images(40)
    names, before = list(model.state_dict()), copy.deepcopy(model.state_dict())
    some = attack(
        method=method, optimizer="adam", preparation=preparation, augmentation="crop_and_flip"
    )
    means = Means(original=images)
    (epoch,) = fine_tune(model, some, images, images, epochs=1, seed=0, means=means)
    assert epoch.test_accuracy == pytest.approx(
        accuracy(model, images, device=torch.device("cpu")), abs=1e-5
    )
    assert sorted(model.state_dict()) == sorted(names)
    assert any(not torch.equal(t, before[name]) for name, t in model.state_dict().items())


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
