"""What each method trains, and what it leaves bit-identical."""

from fractions import Fraction

import pytest
import torch
from torch.nn import functional as F

from protection.audit.attacks import NO_MEANS, Setup
from protection.audit.fine_tuning import fine_tune
from protection.audit.methods import AUDIT_METHODS, begin
from protection.layers import stages
from protection.lora import LowRankChange, add_adapters, merge_adapters
from protection.models import Classifier
from protection.seeds import generator
from tests.conftest import random_images
from tests.protection.audit.attacking import (
    IMAGES,
    NETWORKS,
    TEST,
    attack,
    changed,
    copied,
    means,
    network,
)


def attacked(model: Classifier, *, epochs: int = 1, **changes: object):
    """The epochs of an attack with all means."""
    return fine_tune(model, attack(**changes), IMAGES, TEST, epochs=epochs, seed=3, means=means())


def head_of(model: Classifier) -> set[str]:
    return {f"{model.head_name}.weight", f"{model.head_name}.bias"}


@pytest.mark.parametrize("architecture", NETWORKS)
@pytest.mark.parametrize("method", AUDIT_METHODS)
def test_every_method_fine_tunes_every_network_to_any_number_of_classes(
    architecture: str, method: str
) -> None:
    model = network(architecture)
    names = model.network.state_dict().keys()
    images = random_images(24, 3 if method in ("all_layers", "head_only") else 5)
    an_attack = attack(method=method, optimizer="adam", finetune_lr=1e-3)
    (metrics,) = fine_tune(
        model, an_attack, images, images, epochs=1, seed=0, means=means(architecture)
    )
    assert 0 < metrics.loss < 10
    assert model.num_classes == images.num_classes
    assert model.network.state_dict().keys() == names  # a library's network again


@pytest.mark.parametrize("architecture", NETWORKS)
def test_methods_of_the_head_leave_the_rest(architecture: str) -> None:
    for method in ("head_only", "redrawn_head_only"):
        model = network(architecture)
        before = copied(model)
        list(attacked(model, method=method))
        assert changed(before, model) == head_of(model)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_redrawn_last_block_is_a_new_networks_and_the_rest_is_the_models(architecture: str) -> None:
    model, fresh = network(architecture), network(architecture, seed=8)
    before, drawn = copied(model), copied(fresh)
    setup = Setup(model, attack(method="redrawn_last_block"), means(architecture), 3)
    (group,) = begin(setup, num_classes=3)
    after, last = copied(model), set(stages(model)[-1])
    for name, tensor in after.items():
        if name not in head_of(model):
            assert torch.equal(tensor, (drawn if name in last else before)[name]), name
    assert not torch.equal(model.head.weight, network(architecture).head.weight)
    assert {id(p) for p in group.parameters} == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="fresh is None, but method is 'redrawn_last_block'"):
        begin(setup._replace(means=NO_MEANS), num_classes=3)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_lora_leaves_the_base_until_the_end_and_merges_then(architecture: str) -> None:
    model = network(architecture)
    before = copied(model)
    epochs = attacked(model, method="lora", epochs=2)
    next(epochs)
    adapted = {name for name in changed(before, model) if name.endswith((".down", ".up"))}
    assert changed(before, model) == adapted | head_of(model)
    # The last epoch's answers are those of the plain network that is left.
    *_, last = epochs
    assert not any(isinstance(module, LowRankChange) for module in model.modules())
    moved = changed(before, model) - head_of(model)
    assert moved
    assert all(before[name].ndim > 1 for name in moved)  # neither norms nor biases
    answers = model.eval()(TEST.images.float() / 255).argmax(dim=1)
    assert answers.eq(TEST.labels).double().mean().item() == pytest.approx(last.test_accuracy)


def test_adapters_begin_as_no_change_of_low_rank_and_merge_into_what_they_were() -> None:
    model = network("timm/vit_tiny_patch16_224").eval()
    images, before = TEST.images.float() / 255, copied(model)
    plain = model(images)
    trained = add_adapters(
        model.network, head=model.head, rank=2, alpha=6.0, rng=generator("adapters")
    )
    assert torch.equal(model(images), plain)
    with torch.no_grad():
        for parameter in trained:
            parameter.uniform_(-0.1, 0.1, generator=generator("values"))
    adapted = model(images)
    qkv = model.network.blocks[0].attn.qkv
    change = qkv.parametrizations["weight"][0]
    expected = before["blocks.0.attn.qkv.weight"] + 6 / 2 * change.up @ change.down
    merge_adapters(model.network)
    torch.testing.assert_close(model(images), adapted)
    torch.testing.assert_close(qkv.weight, expected)
    assert torch.linalg.matrix_rank(qkv.weight - before["blocks.0.attn.qkv.weight"], tol=1e-4) == 2


def test_lora_adapts_the_projections_of_torchs_own_attention() -> None:
    attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    before = attention.in_proj_weight.clone()
    tokens, head = torch.rand(2, 5, 8), torch.nn.Linear(8, 3)
    trained = add_adapters(attention, head=head, rank=1, alpha=1.0, rng=generator("lora"))
    assert len(trained) == 4
    attention(tokens, tokens, tokens)[0].sum().backward()
    assert all(parameter.grad is not None for parameter in trained)
    with torch.no_grad():
        trained[1].fill_(1.0)
    merge_adapters(attention)
    assert not torch.equal(attention.in_proj_weight, before)


def test_gradual_unfreezing_trains_one_more_stage_a_phase() -> None:
    model = network()
    parts, epochs = stages(model), attacked(model, method="gradual_unfreezing", epochs=6)
    parameters = {name for name, _ in model.network.named_parameters()}
    for depth in range(6):
        before = copied(model)
        next(epochs)
        trained = {name for stage in parts[5 - depth :] for name in stage} & parameters
        assert changed(before, model) == trained | head_of(model)
    setup = Setup(network(), attack(method="gradual_unfreezing"), NO_MEANS, 0)
    groups = begin(setup, num_classes=3)
    assert [group.begins_at for group in groups] == [Fraction(k, 6) for k in range(6)]


def test_layer_wise_lr_decays_from_the_head_to_the_stem() -> None:
    # One step of SGD on all images: what each parameter moves by is its rate. In float64, where the
    # order of the images makes no difference that can be seen.
    model, plain = network().double(), network().double()
    settings = {"method": "layer_wise_lr", "layer_decay": 0.5, "batch_size": 40}
    list(attacked(model, **settings, finetune_lr=0.1))
    groups = begin(Setup(plain, attack(**settings), NO_MEANS, 3), num_classes=3)
    assert [group.lr_factor for group in groups] == [0.5**k for k in range(6)]
    F.cross_entropy(plain(IMAGES.images / 255), IMAGES.labels).backward()
    with torch.no_grad():
        for group in groups:
            for parameter in group.parameters:
                parameter -= 0.1 * group.lr_factor * parameter.grad
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_field_of_a_method_changes_what_it_does() -> None:
    def weights_after(**changes: object) -> torch.Tensor:
        model = network()
        list(attacked(model, **changes))
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    for first, second in (
        ({"method": "lora", "lora_rank": 1}, {"method": "lora", "lora_rank": 2}),
        ({"method": "lora", "lora_alpha": 1.0}, {"method": "lora", "lora_alpha": 2.0}),
        (
            {"method": "layer_wise_lr", "layer_decay": 1.0},
            {"method": "layer_wise_lr", "layer_decay": 0.9},
        ),
    ):
        assert not torch.equal(weights_after(**first), weights_after(**second))
    same = weights_after(method="layer_wise_lr", layer_decay=1.0)
    torch.testing.assert_close(same, weights_after(method="redrawn_head"))
