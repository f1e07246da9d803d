"""One model over a group of workers: each keeps a part of every parameter (FSDP2).

What belongs to a parameter (its copy, its gradients, the states of optimizers) is then in parts,
too. A block's parameters are put together when the block is computed, and let go after it.
"""

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from protection.layers import blocks
from protection.released import ReleasedModel


def shard(model: ReleasedModel, mesh: DeviceMesh) -> None:
    """Part the parameters of ``model``, the same on every worker, over ``mesh``, in place.

    Gradients are *summed* over the group: each worker differentiates its part of one mean.
    """
    for module in (*blocks(model), model):
        # Also the last one's: what is not in parts between two calls is no copy's or optimizer's.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def is_sharded(model: nn.Module) -> bool:
    """Whether ``model`` is in parts."""
    return isinstance(model, FSDPModule)
