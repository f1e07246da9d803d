"""Slow float64 transcriptions of SOPHON's equations: one Python loop per sum, one function per
equation."""

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F


def softmax(logits: Tensor) -> Tensor:
    exponentials = logits.exp()
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def inverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for p, y in zip(softmax(logits), labels, strict=True):
        total = total - sum(p[k] for k in range(len(p)) if k != y).log()
    return total / len(labels)


def negated_logit_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for p, y in zip(softmax(-logits), labels, strict=True):
        total = total - p[y].log()
    return total / len(labels)


def kl_to_uniform(logits: Tensor, labels: Tensor) -> Tensor:
    total = logits.new_zeros(())
    for p in softmax(logits):
        for p_k in p:
            total = total + (math.log(1 / len(p)) - p_k.log()) / len(p)
    return total / len(labels)


def episode_loss(
    model: nn.Module, batches, *, finetune_lr: float, suppression_loss, second_order=False
):
    """Mean query loss along an unrolled SGD fine-tuning, all K query graphs alive until the caller
    differentiates it.

    First order: the gradient of a step is a constant shift of the weights. Second order: it is
    differentiated through.
    """
    weights = dict(model.named_parameters())
    query_losses = []
    for support, query in batches:
        support_loss = F.cross_entropy(
            functional_call(model, weights, (support.images,)), support.labels
        )
        grads = torch.autograd.grad(
            support_loss,
            tuple(weights.values()),
            create_graph=second_order,
            retain_graph=second_order,
        )
        weights = {
            name: weight - finetune_lr * grad
            for (name, weight), grad in zip(weights.items(), grads, strict=True)
        }
        query_logits = functional_call(model, weights, (query.images,))
        query_losses.append(suppression_loss(query_logits, query.labels))
    return torch.stack(query_losses).mean()


def low_rank_episode(
    model: nn.Module,
    batches,
    *,
    head: dict[str, Tensor],
    factors: dict[str, tuple[Tensor, Tensor]],
    scale: float,
    finetune_lr: float,
    suppression_loss,
):
    """Query losses of fine-tuning ``head`` and ``W + scale * up @ down`` by SGD, and the gradient
    of their mean with respect to every W and every other parameter that is not the head's.
    """
    body = {n: p for n, p in model.named_parameters() if n not in head}
    trained = {**head}
    for name, (up, down) in factors.items():
        trained |= {f"{name}/up": up, f"{name}/down": down}
    losses, total = [], {name: torch.zeros_like(p) for name, p in body.items()}

    def adapted() -> dict[str, Tensor]:
        weights = {**body, **{name: trained[name] for name in head}}
        for name in factors:
            change = scale * trained[f"{name}/up"] @ trained[f"{name}/down"]
            weights[name] = body[name] + change.view(body[name].shape)
        return weights

    for support, query in batches:
        logits = functional_call(model, adapted(), (support.images,))
        grads = torch.autograd.grad(
            F.cross_entropy(logits, support.labels), tuple(trained.values())
        )
        trained = {
            name: (value - finetune_lr * grad).detach().requires_grad_()
            for (name, value), grad in zip(trained.items(), grads, strict=True)
        }
        logits = functional_call(model, adapted(), (query.images,))
        loss = suppression_loss(logits, query.labels)
        for name, grad in zip(body, torch.autograd.grad(loss, tuple(body.values())), strict=True):
            total[name] += grad / len(batches)
        losses.append(loss.detach())
    return torch.stack(losses), total
