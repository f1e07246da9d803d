"""SEP's equations in float64, one Python loop for every sum."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protection.models import Classifier


def cross_entropy_to_target(model: Classifier, image: Tensor, target: int) -> Tensor:
    logits = model(image[None])[0]
    return -(logits[target] - torch.log(torch.exp(logits).sum()))


def squared_feature_distance(model: Classifier, image: Tensor, mean: Tensor) -> Tensor:
    features = model.features(image[None])[0]
    total = torch.zeros((), dtype=features.dtype)
    for value, centre in zip(features, mean, strict=True):
        total = total + (value - centre) ** 2
    return total


def class_mean(model: Classifier, images: Tensor, labels: Tensor, label: int) -> Tensor:
    """Mean penultimate feature of the images of one class."""
    pairs = zip(images, labels, strict=True)
    own = [model.features(image[None])[0] for image, y in pairs if y == label]
    return sum(own[1:], own[0]) / len(own)


def gradient(loss: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    x = image.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(x), x)
    return grad


def project_pixel(value: float, clean: float, epsilon: float) -> float:
    return min(max(min(max(value, clean - epsilon), clean + epsilon), 0.0), 1.0)


def step(image: Tensor, direction: Tensor, clean: Tensor, size: float, epsilon: float) -> Tensor:
    moved = image.clone()
    flat, grads, start = moved.view(-1), direction.reshape(-1), clean.reshape(-1)
    for i in range(len(flat)):
        sign = (grads[i] > 0).double() - (grads[i] < 0).double()
        flat[i] = project_pixel(float(flat[i] - size * sign), float(start[i]), epsilon)
    return moved


def sep(
    clean: Tensor,
    losses: Sequence[Callable[[Tensor], Tensor]],
    *,
    steps: int,
    step_size: float,
    epsilon: float,
) -> Tensor:
    """One image along the mean gradient of the members' losses."""
    image = clean
    for _ in range(steps):
        direction = torch.zeros_like(clean)
        for loss in losses:
            direction = direction + gradient(loss, image) / len(losses)
        image = step(image, direction, clean, step_size, epsilon)
    return image


def sep_vr(
    clean: Tensor,
    losses: Sequence[Callable[[Tensor], Tensor]],
    *,
    inner_losses: Sequence[Callable[[Tensor], Tensor]],
    drawn: Sequence[Sequence[int]],
    step_size: float,
    epsilon: float,
) -> Tensor:
    """One image along the sum of SVRE's inner loop; ``drawn`` has the members of each step."""
    image = clean
    for members in drawn:
        mean = torch.zeros_like(clean)
        for loss in losses:
            mean = mean + gradient(loss, image) / len(losses)
        total, inner = torch.zeros_like(clean), image
        for k in members:
            here, there = gradient(inner_losses[k], inner), gradient(inner_losses[k], image)
            total = total + here - (there - mean)
            inner = step(inner, total, clean, step_size, epsilon)
        image = step(image, total, clean, step_size, epsilon)
    return image
