"""The estimate before a protection against what it then takes, and what it advises."""

import dataclasses

import pytest
import torch

from protection.models import Classifier, ModelConfig, build_model
from protection.savings import MemoryConfig
from protection.sophon.adversary import OPTIMIZERS, StrategyFamily
from protection.sophon.algorithm import protect, start
from protection.sophon.config import SophonConfig
from protection.sophon.domains import Domains
from protection.sophon.fitting import DoesNotFitError, require_fit
from protection.sophon.memory import REMEMBERED, MemoryEstimate, estimate_memory
from protection.sophon.passes import Passes
from tests.protection.allocator import peak_bytes
from tests.tiny_networks import IMAGE_SIZE, images, tiny_network

CONFIG = SophonConfig(
    rounds=2,
    episode_length=2,
    query_size=8,
    adversary=[StrategyFamily(optimizers=["adam"], batch_sizes=[16])],
    reinforcement_batch_size=16,
    validation_images=8,
    max_original_drop=0.99,
)


def larger_vit() -> Classifier:
    """A ViT whose weights and activations are both megabytes."""
    options = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 96, "num_heads": 2}
    config = ModelConfig(
        architecture="timm/vit_tiny_patch16_224", image_size=IMAGE_SIZE, options=options
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(config, num_classes=3)


def estimate(
    model: Classifier, config: SophonConfig = CONFIG, *, group_size: int = 1, on_gpu: bool = True
) -> MemoryEstimate:
    passes = Passes(model, image_size=IMAGE_SIZE)
    return estimate_memory(passes, config, group_size=group_size, on_gpu=on_gpu)


def saving(**memory: object) -> SophonConfig:
    return dataclasses.replace(CONFIG, memory=MemoryConfig(**memory))


@pytest.mark.parametrize("memory", [{}, {"batch_parts": 4}, {"float32_sums": True}])
def test_a_protection_takes_what_was_estimated(memory: dict[str, object]) -> None:
    model, config = larger_vit(), saving(**memory)
    held = sum(parameter.nbytes for parameter in model.parameters())
    expected = estimate(model, config, on_gpu=False).peak_bytes
    domains = Domains(images(20), images(8), [images(40)])

    def run() -> None:
        list(protect(start(model, config), domains, config=config))

    taken = held + peak_bytes(run)
    assert expected == pytest.approx(taken, rel=0.1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_remember_what_is_said(name: str) -> None:
    parameter = torch.nn.Parameter(torch.ones(50))
    optimizer = OPTIMIZERS[name]([parameter], lr=0.1)
    parameter.grad = torch.ones(50)
    optimizer.step()
    numbers = sum(value.numel() for value in optimizer.state[parameter].values() if value.ndim)
    assert numbers == 50 * REMEMBERED[name]


@pytest.mark.parametrize(
    "memory",
    [
        {"batch_parts": 4},
        {"checkpoint_activations": True},
        {"compute_dtype": "bfloat16"},
        {"host_copies": True},
        {"float32_sums": True},
    ],
)
def test_each_saving_makes_episodes_smaller(memory: dict[str, object]) -> None:
    model, phase = larger_vit(), "the support pass of all_layers adam 0.0001 batch 16"
    plain, less = estimate(model).phases[phase], estimate(model, saving(**memory)).phases[phase]
    assert sum(less.values()) < sum(plain.values())


def test_a_group_parts_what_belongs_to_parameters() -> None:
    model = larger_vit()
    config = dataclasses.replace(saving(batch_parts=4), reinforcement_shards=4)
    (alone, group) = (estimate(model, config, group_size=size) for size in (1, 4))
    for phase, items in alone.phases.items():
        for name in ("weights", "the two optimizers", "sums of gradients"):
            assert group.phases[phase].get(name, 0) == pytest.approx(
                items.get(name, 0) / 4, rel=0.01
            )


def test_copies_on_the_same_memory_save_nothing() -> None:
    model = larger_vit()
    copies, none = (
        estimate(model, config, on_gpu=False) for config in (saving(host_copies=True), CONFIG)
    )
    assert copies.phases == none.phases


def test_what_does_not_fit_is_refused_with_a_setting_that_does() -> None:
    model = larger_vit()
    passes = Passes(model, image_size=IMAGE_SIZE)
    need = estimate(model).peak_bytes

    def fit(share: float, **changes: object) -> MemoryEstimate:
        config = dataclasses.replace(CONFIG, **changes)
        return require_fit(
            passes,
            config,
            group_size=1,
            on_gpu=True,
            free_bytes=share * need,
        )

    assert fit(1.06).peak_bytes == need
    with pytest.raises(DoesNotFitError, match=r"needs 0\.0\d GiB during .*0\.0\d GiB free; expect"):
        fit(1.0)
    for share in (0.9, 0.6, 0.3):
        with pytest.raises(DoesNotFitError) as refused:
            fit(share)
        advice = str(refused.value).partition("; expected ")[2]
        group = int(advice.partition("workers_per_group: ")[2] or 1)
        changes = dict(part.split(": ") for part in advice.split(", "))
        memory = {
            name.removeprefix("sophon.memory."): {"true": True}.get(value, value)
            for name, value in changes.items()
            if name.startswith("sophon.memory.")
        }
        if "batch_parts" in memory:
            memory["batch_parts"] = int(memory["batch_parts"])
        advised = dataclasses.replace(
            saving(**memory),
            reinforcement_shards=int(changes.get("sophon.reinforcement_shards", 1)),
        )
        assert estimate(model, advised, group_size=group).peak_bytes <= 0.95 * share * need, advice
    with pytest.raises(DoesNotFitError, match="a smaller model, batch or image, for no setting"):
        fit(0.001)


def test_a_network_without_blocks_is_not_told_to_compute_them_again() -> None:
    with pytest.raises(DoesNotFitError) as refused:
        require_fit(
            Passes(tiny_network("vgg"), image_size=IMAGE_SIZE),
            CONFIG,
            group_size=1,
            on_gpu=False,
            free_bytes=2e6,
        )
    assert "checkpoint" not in str(refused.value)
    assert "host_copies" not in str(refused.value)


def test_more_parts_than_pairs_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_parts is 5, but query_size is 8.*at most 4"):
        saving(batch_parts=5)
