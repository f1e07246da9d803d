"""Protections by two processes over which the model is in parts, and by one that has it whole."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from protection.models import build_model
from protection.parted import own
from protection.savings import MemoryConfig, economize
from protection.sharding import shard
from protection.sophon.adversary import StrategyFamily
from protection.sophon.algorithm import SophonState, protect, start
from protection.sophon.config import SophonConfig
from protection.sophon.domains import Domains
from protection.sophon.memory import estimate_memory
from protection.sophon.passes import Passes
from protection.workers import ALONE, Workers
from tests.protection.allocator import peak_bytes
from tests.tiny_networks import IMAGE_SIZE, TINY, images, tiny_network

NETWORKS = ("vit", "caformer")
GROUP = 2
CONFIG = SophonConfig(
    rounds=2,
    episodes_per_round=3,
    episode_length=2,
    query_size=5,
    adversary=[
        StrategyFamily(
            methods=["all_layers", "redrawn_head", "head_only", "last_stage", "lora"],
            optimizers=["sgd", "adam"],
            finetune_lrs=[0.05],
            batch_sizes=[7],
        )
    ],
    reinforcement_batch_size=10,
    reinforcement_shards=2,
    memory=MemoryConfig(batch_parts=2),
    max_original_drop=0.9,
    seed=15,  # of which both optimizers and all methods are drawn
)
DOMAINS = Domains(images(20, seed=1), images(12, seed=2), [images(20, seed=3)])


def begun(name: str, workers: Workers, config: SophonConfig = CONFIG) -> SophonState:
    """Before the first round, in parts if ``workers`` have a group."""
    model = tiny_network(name, dtype=torch.float64)
    economize(model, config.memory)
    if workers.group.size > 1:
        shard(model, init_device_mesh("cpu", (workers.group.size,)))
    return start(model, config)


def protected(name: str, workers: Workers = ALONE, **memory: object) -> SophonState:
    """After the rounds of `CONFIG`."""
    config = dataclasses.replace(CONFIG, memory=dataclasses.replace(CONFIG.memory, **memory))
    state = begun(name, workers, config)
    for metrics in protect(state, DOMAINS, config=config, workers=workers):
        assert not metrics.is_rolled_back
    return state


def bytes_held(state: SophonState) -> int:
    """Of parameters and of what the optimizers remember of them, on this worker."""
    remembered = [
        value
        for optimizer in (state.suppression_optimizer, state.reinforcement_optimizer)
        for values in optimizer.state.values()
        for value in values.values()
        if value.ndim
    ]
    return sum(own(tensor).nbytes for tensor in (*state.model.parameters(), *remembered))


def peak_of_wide(workers: Workers = ALONE) -> tuple[int, float]:
    """Most bytes at once, of a network that is mostly weights, and their estimate."""
    family = StrategyFamily(optimizers=["adam"], batch_sizes=[6])
    config = dataclasses.replace(
        CONFIG, episodes_per_round=1, query_size=4, adversary=[family], validation_images=12
    )
    options = {**TINY["vit"].options, "embed_dim": 192}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model(dataclasses.replace(TINY["vit"], options=options), num_classes=3)
    passes = Passes(model, image_size=IMAGE_SIZE)
    estimate = estimate_memory(passes, config, group_size=workers.group.size, on_gpu=False)

    def run() -> None:
        if workers.group.size > 1:
            shard(model, init_device_mesh("cpu", (workers.group.size,)))
        list(protect(start(model, config), DOMAINS, config=config, workers=workers))

    # Of a model that is put in parts, `run` takes them all anew.
    is_whole = workers.group.size == 1
    held = sum(parameter.nbytes for parameter in model.parameters()) * is_whole
    return held + peak_bytes(run), estimate.peak_bytes


def run_in_parts(folder: Path) -> None:
    """Leave in ``folder`` what the group has of each network, and each worker's bytes."""
    torch.multiprocessing.spawn(_worker, (str(folder),), nprocs=GROUP)


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=GROUP
    )
    workers = Workers(within=Workers(rank, GROUP, _sum_in_place))
    for name in NETWORKS:
        state = protected(name, workers, checkpoint_activations=True, host_copies=True)
        kept = {"state": state.state_dict(), "bytes": bytes_held(state)}
        torch.save(kept, f"{folder}/{name}-{rank}.pt")
        resumed = begun(name, workers)  # a group goes on from what any number of workers kept
        resumed.load_state_dict(kept["state"])
        assert _is_same(resumed.state_dict(), kept["state"])
    torch.save(peak_of_wide(workers), f"{folder}/peak-{rank}.pt")
    dist.destroy_process_group()


def _sum_in_place(tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        dist.all_reduce(tensor)


def _is_same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(_is_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return isinstance(b, list) and all(map(_is_same, a, b))
    return a == b
