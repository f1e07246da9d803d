"""Suppression losses: low where the simulated adversary's fine-tuning failed.

Shapes: ``B`` query images, ``K`` classes.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

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


SUPPRESSION_LOSSES: Final[dict[str, dict[str, Loss]]] = {
    CLASSIFICATION.name: {
        "inverse_cross_entropy": inverse_cross_entropy,
        "negated_logit_cross_entropy": negated_logit_cross_entropy,
        "kl_to_uniform": kl_to_uniform,
    },
}
"""By the name of the task that they suppress."""
