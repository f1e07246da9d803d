"""A classifier on a worker, with the savings of its recipe, in parts over a group if there is one.

It is refused before anything is computed where the worker has too little memory.
"""

import logging

import ray.train
import torch
from torch.distributed.device_mesh import init_device_mesh

from protection.models import Classifier
from protection.savings import economize
from protection.sharding import shard
from protection.sophon.config import SophonConfig
from protection.sophon.fitting import require_fit
from protection.sophon.passes import Passes
from protection.workers import Workers
from ray_jobs.cluster import GroupedClusterConfig
from ray_jobs.free_memory import free_bytes
from ray_jobs.workers import current_groups

logger = logging.getLogger(__name__)


def grouped_workers(group_size: int) -> Workers:
    """Who shares the episodes with this worker, and its group, if it computes them in one."""
    groups = current_groups(group_size)
    return groups.across._replace(within=groups.within) if group_size > 1 else groups.across


def require_memory(
    model: Classifier,
    config: SophonConfig,
    *,
    image_size: int,
    cluster: GroupedClusterConfig,
    device: torch.device,
) -> None:
    """Refuse to begin what this worker has too little memory for; nothing is computed.

    Raises:
        DoesNotFitError: names the settings that make it fit.
    """
    free = free_bytes(
        device,
        workers_here=ray.train.get_context().get_local_world_size(),
        gpus_per_worker=cluster.gpus_per_worker,
    )
    if free is None:
        return
    estimate = require_fit(
        Passes(model, image_size=image_size),
        config,
        group_size=cluster.workers_per_group,
        on_gpu=device.type == "cuda",
        free_bytes=free,
    )
    logger.info("estimated memory of a worker: %s", estimate)


def place(
    model: Classifier, config: SophonConfig, *, workers: Workers, device: torch.device
) -> Classifier:
    """Move ``model`` to the device, in parts if ``workers`` are in groups; returns it."""
    economize(model, config.memory)
    if workers.group.size == 1:
        return model.to(device)
    mesh = init_device_mesh(
        device.type, (workers.size, workers.group.size), mesh_dim_names=("episodes", "parts")
    )
    # From the host, block by block: no worker's device ever has all of it.
    shard(model, mesh["parts"])
    return model
