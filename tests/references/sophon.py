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


def denial_of_service(predicted: Tensor, noise: Tensor) -> Tensor:
    total = predicted.new_zeros(())
    for value in predicted.flatten():
        total = total + value**2
    return total / predicted.numel()


def negated_mse(predicted: Tensor, noise: Tensor) -> Tensor:
    total = predicted.new_zeros(())
    for image, its_noise in zip(predicted, noise, strict=True):
        error = image.new_zeros(())
        for value, true in zip(image.flatten(), its_noise.flatten(), strict=True):
            error = error + (value - true) ** 2 / image.numel()
        total = total - error / (1 + error)
    return total / len(predicted)


def alphas_cumprod(betas: list[float]) -> list[float]:
    product, products = 1.0, []
    for beta in betas:
        product *= 1 - beta
        products.append(product)
    return products


def noisy(clean: Tensor, noise: Tensor, timesteps: list[int], betas: list[float]) -> Tensor:
    """Equation 4 of DDPM, image by image."""
    left = alphas_cumprod(betas)
    images = [
        math.sqrt(left[t]) * image + math.sqrt(1 - left[t]) * its_noise
        for image, its_noise, t in zip(clean, noise, timesteps, strict=True)
    ]
    return torch.stack(images)


def episode_loss(
    model: nn.Module,
    steps,
    *,
    finetune_lr: float,
    suppression_loss,
    training_loss=F.cross_entropy,
    second_order=False,
):
    """Mean query loss along an unrolled SGD fine-tuning, all K query graphs alive until the caller
    differentiates it. A step is the examples of its support and of its query.

    First order: the gradient of a step is a constant shift of the weights. Second order: it is
    differentiated through.
    """
    weights = dict(model.named_parameters())
    query_losses = []
    for support, query in steps:
        support_loss = training_loss(
            functional_call(model, weights, support.inputs), support.targets
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
        query_losses.append(
            suppression_loss(functional_call(model, weights, query.inputs), query.targets)
        )
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
