"""Whether a protection fits a worker's memory, and which setting makes it fit."""

import dataclasses
from collections.abc import Iterator
from typing import Final, NamedTuple

from protection.layers import blocks
from protection.models import Classifier
from protection.sophon.config import SophonConfig
from protection.sophon.memory import GIB, MemoryEstimate, estimate_memory
from protection.sophon.passes import Passes

# The rest goes to what kernels take for themselves, and to gaps that an allocator cannot use.
_USABLE: Final = 0.95
_SPLITS: Final = (2, 4, 8, 16)


class DoesNotFitError(ValueError):
    """A protection needs more memory than there is."""


class _Saving(NamedTuple):
    setting: str
    memory: dict[str, object]
    """Fields of `MemoryConfig` that it changes."""
    shards: int = 1
    """Least number of ``reinforcement_shards``."""

    def applied_to(self, config: SophonConfig) -> SophonConfig:
        memory = dataclasses.replace(config.memory, **self.memory)  # type: ignore[arg-type]
        shards = max(config.reinforcement_shards, self.shards)
        return dataclasses.replace(config, memory=memory, reinforcement_shards=shards)


def require_fit(
    passes: Passes,
    config: SophonConfig,
    *,
    group_size: int,
    on_gpu: bool,
    free_bytes: float,
) -> MemoryEstimate:
    """Return the estimate, see `estimate_memory`.

    Raises:
        DoesNotFitError: a worker has only ``free_bytes``; says which settings make it fit.
    """

    def estimate(config: SophonConfig, group_size: int) -> MemoryEstimate:
        return estimate_memory(passes, config, group_size=group_size, on_gpu=on_gpu)

    asked = estimate(config, group_size)
    usable = _USABLE * free_bytes
    if asked.peak_bytes <= usable:
        return asked
    advice = "a smaller model, batch or image, for no setting makes it fit"
    for setting, changed, size in _ways_out(passes.model, config, group_size, on_gpu=on_gpu):
        if estimate(changed, size).peak_bytes <= usable:
            advice = setting
            break
    raise DoesNotFitError(
        f"the protection needs {asked} of a worker that has {free_bytes / GIB:.2f} GiB free; "
        f"expected {advice}"
    )


def _ways_out(
    model: Classifier, config: SophonConfig, group_size: int, *, on_gpu: bool
) -> Iterator[tuple[str, SophonConfig, int]]:
    """Settings, what they make of ``config`` and of the group: each alone, then more and more."""
    most_parts = config.most_parts
    savings = [
        *([_Saving("sophon.memory.host_copies: true", {"host_copies": True})] if on_gpu else []),
        *(_recomputing(model)),
        *(_in_parts(parts, group_size) for parts in _SPLITS if parts * group_size <= most_parts),
        _Saving("sophon.memory.compute_dtype: bfloat16", {"compute_dtype": "bfloat16"}),
        _Saving("sophon.memory.float32_sums: true", {"float32_sums": True}),
    ]
    for saving in savings:
        yield saving.setting, saving.applied_to(config), group_size
    all_of_them, settings = config, ""
    for saving in savings:
        all_of_them = saving.applied_to(all_of_them)
        settings += f", {saving.setting}" if settings else saving.setting
        yield settings, all_of_them, group_size
    for size in _SPLITS:
        if group_size < size <= most_parts:
            grouped = _in_parts(max(1, all_of_them.memory.batch_parts // size), size)
            settings_of_group = f"{settings}, cluster.workers_per_group: {size}"
            yield settings_of_group, grouped.applied_to(all_of_them), size


def _recomputing(model: Classifier) -> list[_Saving]:
    setting = "sophon.memory.checkpoint_activations: true"
    return [_Saving(setting, {"checkpoint_activations": True})] if blocks(model) else []


def _in_parts(parts: int, group_size: int) -> _Saving:
    number = parts * group_size
    setting = f"sophon.memory.batch_parts: {number}, sophon.reinforcement_shards: {number}"
    return _Saving(setting, {"batch_parts": number}, shards=number)
