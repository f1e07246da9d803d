"""Bytes that are counted without running are those that torch's allocator hands out."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from protection.live_bytes import trace_evaluation, trace_training
from protection.savings import MemoryConfig, economize
from tests.protection.allocator import peak_bytes
from tests.tiny_networks import IMAGE_SIZE, TINY, images, tiny_network


class Flat(nn.Module):
    """One linear layer of known sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 4 * 4, 10)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        # Rows of the picture, as they lie in memory: nothing is copied.
        return self.linear(pixels.permute(0, 2, 3, 1).flatten(1)).relu()


def test_one_layer_needs_what_can_be_written_down() -> None:
    answers, gradients = 2 * 10 * 4, (480 + 10) * 4
    evaluation = trace_evaluation(Flat(), batch_size=2, image_size=4)
    assert evaluation.peak_bytes() == 2 * answers  # before and after the ReLU
    training = trace_training(Flat(), batch_size=2, image_size=4, trains=lambda name: True)
    assert training.peak_bytes() - training.peak_bytes(gradient_share=0) <= gradients
    assert training.peak_bytes() > gradients
    (last,) = {sum(num_bytes for _, num_bytes in training.log)}
    assert last == 0  # all is let go
    head = trace_training(Flat(), batch_size=2, image_size=4, trains=lambda n: n.endswith("bias"))
    assert len(head.gradients) == 1


# Not those whose convolutions of seven by seven torch unfolds, at this size, by itself.
@pytest.mark.parametrize("name", [name for name in TINY if name not in ("convnext", "vgg")])
def test_a_pass_needs_what_the_allocator_hands_out(name: str) -> None:
    model = tiny_network(name).train()
    some = images(8)
    pixels = (some.images.float() / 255).contiguous(memory_format=torch.channels_last)
    parameters = list(model.parameters())

    def run() -> None:
        grads = torch.autograd.grad(F.cross_entropy(model(pixels), some.labels), parameters)
        del grads

    run()  # libraries keep what they set up once
    counted = trace_training(
        model, batch_size=8, image_size=IMAGE_SIZE, trains=lambda name: True
    ).peak_bytes()
    # Kernels take some for themselves, which is not counted.
    assert counted == pytest.approx(peak_bytes(run), rel=0.1)


def test_nothing_is_drawn_computed_or_changed() -> None:
    model = tiny_network("resnet").eval()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    drawn = torch.get_rng_state()
    trace_training(model, batch_size=2, image_size=IMAGE_SIZE, trains=lambda name: True)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


def test_savings_are_counted() -> None:
    def peak(**memory: object) -> float:
        model = tiny_network("vit")
        economize(model, MemoryConfig(**memory))
        return trace_training(
            model, batch_size=64, image_size=IMAGE_SIZE, trains=lambda name: True
        ).peak_bytes()

    assert peak(checkpoint_activations=True) < 0.7 * peak()
    assert peak(compute_dtype="bfloat16") < 0.9 * peak()
