"""SEP on one batch of images.

As the paper prints it, for each image x of class y, its wrong class g(y) and N checkpoints f_i::

    x_0 = x
    for t = 0 ... T - 1:
        g_ens = mean over i of grad_x L(f_i, x_t, g(y))           # gradients.py
        SEP-VR replaces g_ens by G_M, where G_0 = 0, z_0 = x_t, and for m = 0 ... M - 1:
            k     ~ a random member
            G_m+1 = G_m + grad L(f_k, z_m) - (grad L(f_k, x_t) - g_ens)
            z_m+1 = project(z_m - step * sign(G_m+1))
        x_t+1 = project(x_t - step * sign(g_ens))                 # perturbation.py

L is the cross-entropy to g(y), or with feature alignment (SEP-FA) the squared distance to the mean
feature of class g(y) in the same checkpoint.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from protection.seeds import generator
from protection.sep.block import Block
from protection.sep.config import SepConfig
from protection.sep.gradients import (
    Ensemble,
    ensemble_gradient,
    inner_change,
    member_gradients,
)
from protection.sep.perturbation import project, signed_step


def perturb(
    images: Sequence[Tensor],
    target_labels: Tensor,
    ensemble: Ensemble,
    *,
    image_size: int,
    config: SepConfig,
    key: Sequence[int | str] = (),
) -> list[Tensor]:
    """``images`` moved toward their wrong classes, each within the budget of itself.

    Args:
        images: each ``(C, H, W)`` uint8, of any size: 1 channel is grey, 2 grey and alpha, 3 RGB, 4
            RGB and alpha; alpha is kept.
        target_labels: ``(B,)`` int64 wrong classes.
        ensemble: the members; workers that share them must all call this with the same images.
        image_size: side of the members' input, pixels.
        config: what to do.
        key: names the batch; with ``config.seed`` it decides the members that variance reduction
            draws.

    Returns:
        As ``images``: no value is further than ``config.epsilon_levels`` from its clean one.

    Source: SEP, algorithm 1; its inner loop is SVRE's (Xiong et al., CVPR 2022).
    """
    step_size, epsilon = config.step_size_levels / 255, config.epsilon_levels / 255
    weight = next(ensemble.any_model.parameters())
    block = Block(images, image_size=image_size, like=weight)
    target_labels = target_labels.to(weight.device)

    def moved(colours: list[Tensor], gradient: Tensor) -> list[Tensor]:
        return [
            project(signed_step(x, g, step_size=step_size), clean, epsilon=epsilon)
            for x, g, clean in zip(colours, block.pull_back(gradient), block.colours, strict=True)
        ]

    protected = block.colours
    for step in range(config.steps):
        if config.variance_reduction:
            rng = generator(config.seed, "inner members", *key, step)
            drawn = torch.randint(ensemble.size, (config.inner_steps,), generator=rng)
            direction = _variance_reduced(
                protected, block, ensemble, target_labels, drawn=drawn.tolist(), move=moved
            )
        else:
            gradients = member_gradients(ensemble, block.inputs(protected), target_labels)
            direction = ensemble_gradient(ensemble, gradients)
        protected = moved(protected, direction)
    return block.to_images(protected)


def _variance_reduced(
    start: list[Tensor],
    block: Block,
    ensemble: Ensemble,
    target_labels: Tensor,
    *,
    drawn: Sequence[int],
    move: Callable[[list[Tensor], Tensor], list[Tensor]],
) -> Tensor:
    """``(B, 3, S, S)`` float64 sum of the inner loop's corrected gradients, G_M."""
    inputs = block.inputs(start)
    # Kept for the inner loop, which would otherwise compute each of those it draws a second time.
    at_start = dict(member_gradients(ensemble, inputs, target_labels))
    mean = ensemble_gradient(ensemble, iter(at_start.items()))
    total, inner = torch.zeros_like(mean), start
    for number in drawn:
        change = inner_change(
            ensemble, number, block.inputs(inner), inputs, target_labels, at_start=at_start
        )
        total = total + change + mean
        inner = move(inner, total)
    return total
