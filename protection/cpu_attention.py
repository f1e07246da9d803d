"""The gradient of attention in bfloat16 on a CPU, as products of whole matrices.

Attention of a softmax over all keys, for every head::

    scores = scale * query @ key^T        out = softmax(scores) @ value

Torch's own goes through tiles of the scores, and takes 1.3 times as long for 577 tokens, twice for
197, five times for 65. As there, no scores are kept for the backward pass: they are computed again,
a few images at a time.
"""

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Scores computed at once: 8 MB in float32, and a few times that meanwhile. Fewer at once are no
# faster: a product of many small matrices pays for its start.
_SCORES: Final = 2**21


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> Tensor:
    """What `torch.nn.functional.scaled_dot_product_attention` returns, and its gradients.

    Attention with a mask, dropout, or heads that share keys is left to torch, and what needs no
    gradient.
    """
    tensors = (query, key, value)
    is_plain = attn_mask is None and dropout_p == 0 and not is_causal
    is_plain = is_plain and not options.get("enable_gqa", False)
    has_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if is_plain and has_gradient and all(t.ndim == 4 and t.device.type == "cpu" for t in tensors):
        output: Tensor = _Attention.apply(*tensors, options.get("scale"))
        return output
    return F.scaled_dot_product_attention(
        *tensors, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, **options
    )


class _Attention(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = query.shape[-1] ** -0.5 if scale is None else scale
        return F.scaled_dot_product_attention(query, key, value, scale=scale)

    @staticmethod
    @once_differentiable
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        tensors = (*ctx.saved_tensors, grad)
        query, key, *_ = tensors
        at_once = max(1, _SCORES // (query.shape[1] * query.shape[2] * key.shape[2]))
        grads = [
            _gradients(*few, scale=ctx.scale)
            for few in zip(*(tensor.split(at_once) for tensor in tensors), strict=True)
        ]
        return *(torch.cat(parts) for parts in zip(*grads, strict=True)), None


def _gradients(
    query: Tensor, key: Tensor, value: Tensor, grad: Tensor, *, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value ``(B, H, N, D)``, where ``grad`` is that of what comes out."""
    # Scores and what is taken of them are float32, as in torch's own: a score of 20 in bfloat16 is
    # off by 0.06, and its weight by 6 %.
    scores = (scale * query.float()) @ key.float().transpose(-2, -1)
    weights = scores.softmax(-1)
    of_weights = (grad @ value.transpose(-2, -1)).float()
    of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, torch.float32)
    of_scores = of_scores.mul_(scale).to(query.dtype)
    of_value = weights.to(grad.dtype).transpose(-2, -1) @ grad
    return of_scores @ key, of_scores.transpose(-2, -1) @ query, of_value
