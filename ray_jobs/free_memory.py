"""How much memory one worker may take: of its GPU, or its share of the machine's."""

from pathlib import Path
from typing import Final

import torch

_MEMINFO: Final = Path("/proc/meminfo")
# Of the container that this process is in, where it is in one.
_CGROUP: Final = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device, *, workers_here: int, gpus_per_worker: float) -> float | None:
    """Bytes that this worker may take; None where the machine does not say.

    Args:
        device: where the worker computes.
        workers_here: how many share the machine.
        gpus_per_worker: less than one where several share the GPU.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] * min(1.0, gpus_per_worker)
    found = [value for value in (_machine(_MEMINFO), _container(_CGROUP)) if value is not None]
    return min(found) / workers_here if found else None


def _machine(meminfo: Path) -> float | None:
    if not meminfo.exists():
        return None
    lines = (line.split() for line in meminfo.read_text().splitlines())
    return next((float(words[1]) * 1024 for words in lines if words[0] == "MemAvailable:"), None)


def _container(cgroup: Path) -> float | None:
    limit, used = cgroup / "memory.max", cgroup / "memory.current"
    if not limit.exists() or not used.exists() or not limit.read_text().strip().isdigit():
        return None
    # What is in use includes files that are kept in memory only as long as nothing else needs it.
    statistics = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    cached = sum(float(value) for name, value in statistics if name == "inactive_file")
    return float(limit.read_text()) - float(used.read_text()) + cached
