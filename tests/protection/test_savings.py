"""Each saving of memory computes what is computed without it, or what it says it does instead."""

import pytest
import torch

from protection.batches import Batch
from protection.gradients import BatchGradient, batch_gradient
from protection.models import Classifier
from protection.preservation import preserved
from protection.savings import MemoryConfig, economize
from protection.tasks import CLASSIFICATION
from protection.training import train_step
from tests.tiny_networks import images, tiny_network


def gradient_of(model: Classifier, *, num_parts: int = 1) -> BatchGradient:
    some = images(10)
    batch = Batch(some.images.to(model.head.weight.dtype) / 255, some.labels)
    model.train()
    return batch_gradient(
        model,
        model.examples(batch),
        CLASSIFICATION.loss,
        list(model.parameters()),
        key=("test",),
        num_parts=num_parts,
    )


def without_chance(name: str) -> Classifier:
    model = tiny_network(name, dtype=torch.float64)
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("num_parts", [2, 3, 10])
def test_a_batch_in_parts_is_the_batch_without_batchnorm(num_parts: int) -> None:
    whole, parts = (gradient_of(without_chance("vit"), num_parts=n) for n in (1, num_parts))
    torch.testing.assert_close(parts.grads, whole.grads, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    assert parts.accuracy == whole.accuracy


def test_batchnorm_sees_one_part_at_a_time() -> None:
    whole, parts = (gradient_of(without_chance("resnet"), num_parts=n) for n in (1, 2))
    assert (whole.loss - parts.loss).abs() > 1e-3


def test_parts_draw_of_their_own_key() -> None:
    first = gradient_of(tiny_network("vit"), num_parts=2)
    torch.rand(3)
    again = gradient_of(tiny_network("vit"), num_parts=2)
    assert all(torch.equal(a, b) for a, b in zip(first.grads, again.grads, strict=True))


@pytest.mark.parametrize("name", ["vit", "caformer", "resnet", "densenet", "swin"])
def test_activations_computed_again_give_the_same_step(name: str) -> None:
    plain, saving = tiny_network(name), tiny_network(name)
    economize(saving, MemoryConfig(checkpoint_activations=True))
    some = images(8)
    batch = Batch(some.images.float() / 255, some.labels)
    for model in (plain, saving):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        train_step(model, optimizer, batch, num_shards=2, seed=3)
    for key, tensor in plain.state_dict().items():  # BatchNorm's statistics among them
        torch.testing.assert_close(saving.state_dict()[key], tensor, rtol=1e-6, atol=1e-7)


def test_bfloat16_computes_and_float32_remembers() -> None:
    plain, saving = tiny_network("convnext"), tiny_network("convnext")
    economize(saving, MemoryConfig(compute_dtype="bfloat16"))
    kinds = set()
    saving.head.register_forward_hook(lambda *args: kinds.add(args[2].dtype))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = gradient_of(plain)
        torch.manual_seed(0)
        actual = gradient_of(saving)
    assert kinds == {torch.bfloat16}
    assert {grad.dtype for grad in actual.grads} == {torch.float32} == {actual.loss.dtype}
    assert 0 < (actual.loss - expected.loss).abs() < 0.02  # eight bits of a number about 1


def test_a_copy_in_host_memory_restores_to_the_bit() -> None:
    model = tiny_network("resnet")
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with preserved(model, in_host_memory=True), torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(1)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_what_cannot_be_saved_is_refused() -> None:
    with pytest.raises(ValueError, match="batch_parts is 0; expected at least 1"):
        MemoryConfig(batch_parts=0)
    with pytest.raises(ValueError, match="compute_dtype is 'float16'; expected float32 or bf"):
        MemoryConfig(compute_dtype="float16")
    with pytest.raises(ValueError, match=r"checkpoint_activations is true, but VGG has no list"):
        economize(tiny_network("vgg"), MemoryConfig(checkpoint_activations=True))
