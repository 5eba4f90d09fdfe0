"""Divergences are what their formulas say, gradients included, over all tokens or the top k."""

import pytest
import torch
from torch import Tensor

from tsugiki.distill.divergence import Direction, Target, divergence, full_target, top_target

DIRECTIONS: tuple[Direction, ...] = ("forward", "reverse")
POSITIONS, VOCABULARY = 5, 11


def logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(POSITIONS, VOCABULARY, generator=generator, dtype=torch.float64)


def straightforward(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) of probabilities, one outcome after the other."""
    found = torch.zeros(len(p), dtype=p.dtype)
    for row in range(len(p)):
        for outcome in range(p.shape[1]):
            found[row] += p[row, outcome] * (p[row, outcome].log() - q[row, outcome].log())
    return found


def softmax(values: Tensor, temperature: float) -> Tensor:
    powers = (values / temperature).exp()
    return powers / powers.sum(-1, keepdim=True)


def merged(probabilities: Tensor, indices: Tensor) -> Tensor:
    """Probabilities of the tokens `indices` and of the rest."""
    top = probabilities.gather(1, indices)
    return torch.cat((top, 1 - top.sum(-1, keepdim=True)), dim=1)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [None, 1, 4, VOCABULARY - 1])
def test_value_and_gradient_are_those_of_the_formula(
    direction: Direction, temperature: float, k: int | None
) -> None:
    student = logits(0).requires_grad_()
    teacher = logits(1)
    target = top_target(teacher, k, temperature) if k else full_target(teacher, temperature)
    found = divergence(student, target, direction, temperature)
    copy = student.detach().clone().requires_grad_()
    p, q = softmax(teacher, temperature), softmax(copy, temperature)
    if target.indices is not None:
        p, q = merged(p, target.indices), merged(q, target.indices)
    pair = (p, q) if direction == "forward" else (q, p)
    expected = temperature**2 * straightforward(*pair)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(student.grad, copy.grad, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_top_k_never_say_more_than_all_tokens(direction: Direction) -> None:
    student, teacher = logits(2), logits(3)
    whole = divergence(student, full_target(teacher, 1.0), direction)
    sizes = (1, 3, 6, VOCABULARY - 1)
    parts = [divergence(student, top_target(teacher, k, 1.0), direction) for k in sizes]
    for finer, coarser in zip([whole, *parts[::-1]], parts[::-1], strict=False):
        assert bool((coarser <= finer + 1e-12).all())
    torch.testing.assert_close(parts[-1], whole)


def test_nothing_is_learned_from_an_equal() -> None:
    student = logits(4).requires_grad_()
    divergence(student, top_target(student.detach(), 3, 1.0), "forward").sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.zeros_like(student), atol=1e-12, rtol=0)


def test_an_outcome_that_the_teacher_rules_out_adds_nothing() -> None:
    student = logits(5).requires_grad_()
    certain = torch.full((POSITIONS, VOCABULARY), -torch.inf, dtype=torch.float64)
    certain[:, 2] = 0.0
    found = divergence(student, Target(certain), "forward")
    torch.testing.assert_close(found, -student.log_softmax(-1)[:, 2])
    found.sum().backward()
    assert student.grad is not None
    assert bool(student.grad.isfinite().all())
