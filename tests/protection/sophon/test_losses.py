import pytest
import torch

from protection.sophon.losses import SUPPRESSION_LOSSES, inverse_cross_entropy
from protection.tasks import CLASSIFICATION
from tests.references import sophon as references

LOSSES = SUPPRESSION_LOSSES[CLASSIFICATION.name]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("scale", [1.0, 30.0])  # at 30 some p_y round to 1 in float32
def test_suppression_loss_matches_equation(
    name: str, num_classes: int, scale: float, rng: torch.Generator
) -> None:
    logits = scale * torch.randn(8, num_classes, generator=rng, dtype=torch.float64)
    logits.requires_grad_()
    labels = torch.randint(num_classes, (8,), generator=rng)
    loss, reference = LOSSES[name], getattr(references, name)
    torch.testing.assert_close(loss(logits, labels), reference(logits, labels))
    (grad,) = torch.autograd.grad(loss(logits, labels), logits)
    (expected,) = torch.autograd.grad(reference(logits, labels), logits)
    torch.testing.assert_close(grad, expected)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits,))


def test_inverse_cross_entropy_stays_finite_where_the_naive_formula_does_not() -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0])
    naive = -(1 - logits.softmax(dim=-1)[0, 0]).log()
    assert naive.isinf()
    loss = inverse_cross_entropy(logits, labels)
    torch.testing.assert_close(loss.item(), 200 - torch.tensor(2.0).log().item())
    (grad,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(grad, torch.tensor([[1.0, -0.5, -0.5]]))


def test_losses_fall_as_the_true_class_becomes_unlikely() -> None:
    labels = torch.tensor([0])
    sure, wrong = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[-4.0, 0.0, 0.0]])
    for name in ("inverse_cross_entropy", "negated_logit_cross_entropy"):
        loss = LOSSES[name]
        assert loss(wrong, labels) < loss(sure, labels)
    uniform = LOSSES["kl_to_uniform"]
    assert uniform(torch.zeros(1, 3), labels).abs() < 1e-6
    assert uniform(sure, labels) > 0.1
