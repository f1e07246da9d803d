"""Suppression losses: low where the simulated adversary's fine-tuning failed.

Shapes: ``B`` query images, ``K`` classes, ``C H W`` an image.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from protection.denoising import DENOISING
from protection.tasks import CLASSIFICATION, Loss


def inverse_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``-log(1 - p_y)`` over the query set: low when the true class is unlikely.

    Args:
        logits: ``(B, K)`` query scores after simulated fine-tuning, ``K >= 2``.
        labels: ``(B,)`` int64 in ``[0, K)``.

    Source: SOPHON, inverse cross-entropy.
    Differs: the authors' code takes the cross-entropy of negated logits; see
        `negated_logit_cross_entropy`.
    """
    true_class = F.one_hot(labels, logits.shape[-1]).bool()
    log_p = logits.log_softmax(dim=-1)
    # log(1 - p_y) as a logsumexp over the other classes: finite even where p_y rounds to 1.
    return -log_p.masked_fill(true_class, -torch.inf).logsumexp(dim=-1).mean()


def negated_logit_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``-log softmax(-z)_y``: low when the true class has the *lowest* score.

    Args:
        logits: ``(B, K)`` query scores after simulated fine-tuning.
        labels: ``(B,)`` int64 in ``[0, K)``.

    Source: what SOPHON's released code computes under the name of inverse cross-entropy.
    """
    return F.cross_entropy(-logits, labels)


def kl_to_uniform(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of ``KL(uniform || p)`` over the query set: zero when every class is equally likely.

    Args:
        logits: ``(B, K)`` query scores after simulated fine-tuning, any ``K >= 2``.
        labels: not used; the signature is that of every suppression loss.

    Source: SOPHON, KL divergence from the uniform distribution.
    """
    del labels
    return -math.log(logits.shape[-1]) - logits.log_softmax(dim=-1).mean()


def denial_of_service(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean square of the predicted noise: zero where the denoiser removes none.

    Args:
        predicted: ``(B, C, H, W)`` noise that the denoiser sees in query images.
        noise: not used; the signature is that of every suppression loss.

    Source: SOPHON, denial of service, which is the squared norm; here divided by the number of
        pixels, so that learning rates do not depend on it.
    """
    del noise
    return predicted.square().mean()


def negated_mse(predicted: Tensor, noise: Tensor) -> Tensor:
    """Mean of ``-e / (1 + e)``, ``e`` the mean squared error of an image: low where it is large.

    In (-1, 0]: the plain negative has no least value, so a few steps along it drive the weights off
    to infinity. The gradient is that of ``-e`` divided by ``(1 + e)^2``, and what is ruined already
    sends next to none.

    Args:
        predicted: ``(B, C, H, W)`` noise that the denoiser sees in query images.
        noise: likewise, the noise that is in them.

    Source: SOPHON, the negative of the adversary's loss, bounded as its inverse cross-entropy is.
    """
    error = (predicted - noise).square().flatten(1).mean(dim=1)
    # Not -e / (1 + e): that is no number where e overflows, and this is -1.
    return (1 / (1 + error) - 1).mean()


SUPPRESSION_LOSSES: Final[dict[str, dict[str, Loss]]] = {
    CLASSIFICATION.name: {
        "inverse_cross_entropy": inverse_cross_entropy,
        "negated_logit_cross_entropy": negated_logit_cross_entropy,
        "kl_to_uniform": kl_to_uniform,
    },
    DENOISING.name: {"denial_of_service": denial_of_service, "negated_mse": negated_mse},
}
"""By the name of the task that they suppress."""
