"""How a strategy fine-tunes a model in an episode: whose gradients it takes, what a step does."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from protection.layers import stages, weight_matrices
from protection.lora import Adapters
from protection.models import Classifier, redrawn_head, replace_head
from protection.released import ReleasedModel
from protection.sophon.adversary import METHODS, OPTIMIZERS, Method, Strategy

# What an audit's adversary takes, too, if nothing is said.
LORA_RANK: Final = 8
LORA_ALPHA: Final = 16.0


class FineTuning(NamedTuple):
    """A fine-tuning that has begun."""

    wanted: list[nn.Parameter]
    """Parameters whose gradients a step needs, in this order."""
    step: Callable[[Sequence[Tensor]], None]
    """Takes a step along these gradients."""


def begin_fine_tuning(
    model: ReleasedModel, strategy: Strategy, *, num_classes: int, rng: torch.Generator
) -> FineTuning:
    """Redraw the head if the strategy does, and make its optimizer.

    The model is in train mode afterwards. Frozen layers keep ``requires_grad``: SOPHON's query
    gradient needs them.
    """
    method = METHODS[strategy.method]
    if method.redraws_head:
        assert isinstance(model, Classifier)  # other models are refused where methods are declared
        replace_head(model, redrawn_head(model, num_classes=num_classes, rng=rng))
    model.train()
    wanted = trained_parameters(model, method)
    if method.trains != "adapters":
        optimizer = _optimizer(strategy, wanted)
        return FineTuning(wanted, lambda grads: _step(optimizer, wanted, grads))
    assert isinstance(model, Classifier)
    head = list(model.head.parameters())
    weights = wanted[len(head) :]
    adapters = Adapters(weights, rank=LORA_RANK, alpha=LORA_ALPHA, rng=rng)
    trained = [*head, *adapters.factors]
    optimizer = _optimizer(strategy, trained)

    def step(grads: Sequence[Tensor]) -> None:
        of_factors = adapters.gradients(grads[len(head) :])
        with adapters.updated():
            _step(optimizer, trained, [*grads[: len(head)], *of_factors])

    return FineTuning(wanted, step)


def trained_parameters(model: ReleasedModel, method: Method) -> list[nn.Parameter]:
    """What ``method`` trains; of adapters, what they change. The head comes first."""
    if method.trains == "all":
        return list(model.parameters())
    assert isinstance(model, Classifier)
    head = list(model.head.parameters())
    return [*head, *_PARTS[method.trains](model)]


def _last_stage(model: Classifier) -> list[nn.Parameter]:
    named = dict(model.network.named_parameters())
    return [named[name] for stage in stages(model)[-1:] for name in stage if name in named]


def _norms_and_biases(model: Classifier) -> list[nn.Parameter]:
    body = (p for n, p in model.network.named_parameters() if not n.startswith(model.head_name))
    return [parameter for parameter in body if parameter.ndim == 1]


def _matrices(model: Classifier) -> list[nn.Parameter]:
    return [
        getattr(module, name)
        for module, name in weight_matrices(model.network)
        if module is not model.head
    ]


_PARTS: Final[dict[str, Callable[[Classifier], list[nn.Parameter]]]] = {
    "nothing": lambda model: [],
    "last_stage": _last_stage,
    "norms_and_biases": _norms_and_biases,
    "adapters": _matrices,
}


def _optimizer(strategy: Strategy, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    # Torch computes on the parameters of a group together, which must be of one type: those that
    # are in parts over a group of workers, and those that are not.
    by_type: dict[type, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_type.setdefault(type(parameter.data), []).append(parameter)
    return OPTIMIZERS[strategy.optimizer](
        [{"params": alike} for alike in by_type.values()],
        lr=strategy.finetune_lr,
        weight_decay=strategy.weight_decay,
    )


def _step(
    optimizer: torch.optim.Optimizer, trained: Sequence[Tensor], grads: Sequence[Tensor]
) -> None:
    for parameter, grad in zip(trained, grads, strict=True):
        parameter.grad = grad
    optimizer.step()
    optimizer.zero_grad()
