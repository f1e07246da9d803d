"""What a network computes in: as it is, or its matrix products in bfloat16.

Torch's autocast does that. On a CPU some of torch's kernels are slow in bfloat16, so there the same
is computed in another way (`convolve`, `attend`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from protection.cpu_attention import attend
from protection.cpu_convolutions import convolve

_ON_CPU: Final[Mapping[Callable[..., Any], Callable[..., Any]]] = {
    F.conv2d: convolve,
    F.scaled_dot_product_attention: attend,
}


@contextmanager
def computing_in(dtype: torch.dtype, device_type: str) -> Iterator[None]:
    """Within it, forward passes on such a device compute matrix products in ``dtype``.

    In float32 they compute as they are. Gradients can be taken outside. `torch.vmap` wants
    `torch.autocast` itself.
    """
    is_slow = dtype == torch.bfloat16 and device_type == "cpu"
    with (
        torch.autocast(device_type, dtype, enabled=dtype != torch.float32),
        _OnCpu() if is_slow else nullcontext(),
    ):
        yield


def computing_again() -> tuple[AbstractContextManager[object], AbstractContextManager[object]]:
    """For `torch.utils.checkpoint` within `computing_in`: it brings back autocast alone."""
    is_within = torch.is_autocast_enabled("cpu")
    return nullcontext(), _OnCpu() if is_within else nullcontext()


class _OnCpu(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return _ON_CPU.get(func, func)(*args, **(kwargs or {}))
