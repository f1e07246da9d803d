"""What a pass through a network needs beside its weights, counted without running it.

Operations run on *fake* tensors, which have shapes and storages but no data. What every operation
allocates is logged, and when it is let go, by autograd too: activations are what the network's own
backward keeps, not a rule of thumb. What a kernel takes for itself meanwhile is not seen.
"""

import copy
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Pass(NamedTuple):
    """Every allocation of one pass, in order."""

    log: Sequence[tuple[int, int]]
    """Number of a storage and its bytes, negative where it is let go."""
    gradients: frozenset[int]
    """Which of them are gradients of parameters."""

    def peak_bytes(self, *, gradient_share: float = 1.0) -> float:
        """Most bytes at once, where of the gradients only ``gradient_share`` is held."""
        live = most = 0.0
        for number, num_bytes in self.log:
            live += num_bytes * (gradient_share if number in self.gradients else 1)
            most = max(most, live)
        return most


def trace_training(
    model: nn.Module, *, batch_size: int, image_size: int, trains: Callable[[str], bool]
) -> Pass:
    """Forward and backward of cross-entropy, with gradients of parameters whose name ``trains``.

    Args:
        model: on any device, meta among them; not modified.
        batch_size: images.
        image_size: their height and width.
        trains: whether a parameter of that name gets a gradient.
    """

    def run(fake: nn.Module, images: Tensor) -> list[Tensor]:
        loss = F.cross_entropy(fake(images), torch.zeros(len(images), dtype=torch.int64))
        trained = [parameter for name, parameter in fake.named_parameters() if trains(name)]
        return [
            grad
            for grad in torch.autograd.grad(loss, trained, allow_unused=True)
            if grad is not None
        ]

    return _trace(model, (batch_size, 3, image_size, image_size), run, is_training=True)


def trace_evaluation(model: nn.Module, *, batch_size: int, image_size: int) -> Pass:
    """Forward without gradients, in eval mode; arguments as for `trace_training`."""

    def run(fake: nn.Module, images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            fake(images)
        return []

    return _trace(model, (batch_size, 3, image_size, image_size), run, is_training=False)


def _trace(
    model: nn.Module,
    shape: Sequence[int],
    run: Callable[[nn.Module, Tensor], list[Tensor]],
    *,
    is_training: bool,
) -> Pass:
    live = _LiveBytes()
    with FakeTensorMode():
        tensors: dict[int, object] = {id(b): _fake(b) for b in model.buffers()}
        tensors |= {id(p): nn.Parameter(_fake(p)) for p in model.parameters()}
        fake = copy.deepcopy(model, tensors).train(is_training)
        images = torch.empty(*shape, memory_format=torch.channels_last)  # as models are given them
        live.ignore([*fake.parameters(), *fake.buffers(), images])
        with live:
            gradients = live.numbers(run(fake, images))
    return Pass(live.log, gradients)


def _fake(tensor: Tensor) -> Tensor:
    # On the CPU, where torch chooses kernels for attention by shape alone. Those of a GPU keep the
    # same tensors for their backward.
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch annotates neither
    """Logs each storage that an operation makes, and its end."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.log: list[tuple[int, int]] = []
        self._numbers: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leave out what is there before."""
        for tensor in tensors:
            self._watch(tensor, 0)

    def numbers(self, tensors: Iterable[Tensor]) -> frozenset[int]:
        """How the storages of ``tensors`` are numbered in the log."""
        return frozenset(self._numbers[id(tensor.untyped_storage())] for tensor in tensors)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self._watch(result, result.untyped_storage().nbytes())
        return results

    def _watch(self, tensor: Tensor, num_bytes: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._watched:
            return
        number = len(self.log)
        self.log.append((number, num_bytes))

        def end(_: object) -> None:
            self.log.append((number, -num_bytes))
            del self._watched[key], self._numbers[key]

        self._numbers[key] = number
        self._watched[key] = weakref.ref(storage, end)
