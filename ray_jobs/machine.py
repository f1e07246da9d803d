"""What of a machine a worker uses. Decided here, so that no recipe has to say it.

| what | how much | where it is set |
|---|---|---|
| threads of torch, and of Arrow | `cluster.cpus_per_worker` | `prepare`, in each worker and task |
| memory of a shared GPU | as much of it as the worker has of the GPU | `prepare` |
| collectives | NCCL; gloo without GPUs, and where workers share one | `collective_backend` |
| object store | 256 MiB where a job starts Ray; else the cluster's | `connect` |
| reports, start-up, collectives: how long | `TRAIN_ENVIRONMENT` | `connect` |
| processes that load images | none: they are decoded once, in the worker | storage/datasets.py |
| requests to S3 at a time | a few a worker, whatever it has | storage/parallel_parts.py |

cuDNN is left to itself but for SEP, where the fastest algorithm could turn a sign: protect_data.py.
"""

import logging
from typing import Final

import pyarrow
import torch

from ray_jobs.cluster import ClusterConfig

# Recipes, rows and curves go through the store; weights and images go through `storage`. Ray's own
# choice is 30 % of the memory.
EMBEDDED_OBJECT_STORE_BYTES: Final = 256 * 2**20

TRAIN_ENVIRONMENT: Final = {
    # report() waits for the controller's next poll; 2 s is far longer than a small round.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # What Ray believes to be free may be gone with its machine: so long it tries that, then looks
    # again. How long in all is `cluster.wait_seconds`.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "30",
    # Without it an uneven report would wait for ever.
    "RAY_TRAIN_COLLECTIVE_TIMEOUT_S": "1800",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
}

# The rest is for what CUDA itself needs in each process.
_OF_A_SHARED_GPU: Final = 0.95


def collective_backend(cluster: ClusterConfig) -> str:
    """Return what workers sum over each other with; NCCL refuses two of them on one GPU."""
    return "nccl" if cluster.gpus_per_worker >= 1 else "gloo"


def prepare(cluster: ClusterConfig) -> None:
    """Use what the worker in this process was given, and no more."""
    # Ray says so too, by OMP_NUM_THREADS, unless the machine's environment has that already.
    torch.set_num_threads(cluster.cpus_per_worker)
    pyarrow.set_cpu_count(cluster.cpus_per_worker)
    if 0 < cluster.gpus_per_worker < 1 and torch.cuda.is_available():
        # One trial that grows must not take the memory of the others.
        share = _OF_A_SHARED_GPU * cluster.gpus_per_worker
        torch.cuda.set_per_process_memory_fraction(share)


def quiet_worker() -> None:
    """Silence what Ray logs on a worker about every report: the progress line says it already."""
    import ray.train.v2._internal.execution.context as context

    logging.getLogger(context.__file__).setLevel(logging.WARNING)
