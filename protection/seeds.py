"""Randomness that depends on what is computed, never on who computes it.

Every random draw is named by a key such as ``(run seed, "episode", round, episode)``. A worker that
picks up an episode derives its generator from the key, so one worker, two, or five that die and
come back draw the same numbers.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive_seed(*key: int | str) -> int:
    """Seed in ``[0, 2**63)`` that depends on every element of ``key`` and on their order."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def generator(*key: int | str) -> torch.Generator:
    """CPU generator seeded by ``key``: the same numbers whatever the device the model is on."""
    return torch.Generator().manual_seed(derive_seed(*key))


@contextmanager
def seeded(*key: int | str, device: torch.device) -> Iterator[None]:
    """Seed the global generators of the CPU and ``device``, which dropout reads, for the body.

    They come back bit-identical afterwards, also when the body raises.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(derive_seed(*key))
        yield
