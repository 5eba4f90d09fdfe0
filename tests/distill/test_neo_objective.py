"""LLM-Neo's loss and gradients equal a straightforward float64 computation, at the right places."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.hf_model import load_model
from tsugiki.distill.batches import Batch, batched, shared_beginning
from tsugiki.distill.divergence import Target, full_target
from tsugiki.distill.lora_student import LoraSettings, LoraStudent, attach
from tsugiki.distill.neo import Mixture, NeoObjective
from tsugiki.distill.teacher import LiveTeacher, View

VOCABULARY = 512
ALPHA, TEMPERATURE = 0.3, 1.5


@pytest.fixture
def student(tiny_base: Path) -> LoraStudent:
    """With a branch that already does something, so that both factors have gradients."""
    found = attach(load_model(tiny_base), LoraSettings(rank=4), seed=0, checkpointing=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in found.group(1.0).parameters.items():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return found


@pytest.fixture(scope="module")
def teacher(tiny_tuned: Path) -> LiveTeacher:
    return LiveTeacher(load_model(tiny_tuned), View(VOCABULARY, None, TEMPERATURE))


def gradients(student: LoraStudent) -> dict[str, Tensor]:
    found = {}
    for name, parameter in student.group(1.0).parameters.items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad
        parameter.grad = None
    return found


def reference(student: Any, teacher: Any, dialogues: list[Dialogue]) -> Tensor:
    """(1 - alpha) CE + alpha T^2 KL in float64: a dialogue and a token at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for dialogue in dialogues:
        ids = torch.tensor([dialogue.ids])
        ours, theirs = student(ids).logits[0], teacher(ids).logits[0].detach()
        for at in range(dialogue.start, len(dialogue.ids)):
            row = at - 1  # what stands there predicts token `at`
            ce = -ours[row].log_softmax(-1)[dialogue.ids[at]]
            p = (theirs[row] / TEMPERATURE).softmax(-1)
            q = (ours[row] / TEMPERATURE).log_softmax(-1)
            kl = (p * (p.log() - q)).sum() * TEMPERATURE**2
            total = total + (1 - ALPHA) * ce + ALPHA * kl
    return total


def test_loss_and_gradients_equal_float64(
    student: LoraStudent, teacher: LiveTeacher, dialogues: list[Dialogue]
) -> None:
    objective = NeoObjective(student.model, teacher, Mixture(ALPHA, "forward", TEMPERATURE))
    found = torch.zeros(())
    for batch in batched(dialogues, 64, shared_beginning(dialogues)):
        found = found + objective(batch).total
    found.backward()
    exact = LoraStudent(deepcopy(student.model).double(), None)
    exact.model.zero_grad()
    expected = reference(exact.model, deepcopy(teacher.model).double(), dialogues)
    expected.backward()
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
    for (name, ours), theirs in zip(
        gradients(student).items(), gradients(exact).values(), strict=True
    ):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 1e-4, name


def test_both_losses_are_taken_where_the_next_token_is_an_answer_token(tiny_base: Path) -> None:
    model = load_model(tiny_base)
    dialogue = Dialogue((5, 6, 7, 8, 9, 10), 5, True)  # one answer token: 10
    with torch.no_grad():
        before_the_answer = model(torch.tensor([dialogue.ids])).logits[0, 4]

    # a teacher that agrees there, and nowhere else matters
    class Agreeing:
        def target(self, batch: Batch) -> Target:
            assert batch.answer_tokens == 1
            return full_target(before_the_answer[None], 1.0)

    losses = NeoObjective(model, Agreeing(), Mixture(1.0))(Batch((dialogue,)))
    assert losses.tokens == 1
    assert losses.parts["kl"] == pytest.approx(0.0, abs=1e-6)
    assert losses.parts["ce"] == pytest.approx(
        float(-before_the_answer.log_softmax(-1)[10]), rel=1e-5
    )


def test_a_shared_beginning_changes_nothing_but_the_work(
    student: LoraStudent, teacher: LiveTeacher, dialogues: list[Dialogue]
) -> None:
    shared = shared_beginning(dialogues)
    assert shared == 3
    objective = NeoObjective(student.model, teacher, Mixture(ALPHA))
    plain, once = (Batch(tuple(dialogues[:3]), tokens) for tokens in (0, shared))
    first, second = objective(plain), objective(once)
    assert once.tokens == plain.tokens - 2 * shared
    torch.testing.assert_close(first.total, second.total, rtol=1e-5, atol=1e-4)
    first.total.backward()
    expected = gradients(student)
    second.total.backward()
    for name, found in gradients(student).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-3, atol=1e-4)


def test_recomputed_activations_give_the_same_gradients(
    tiny_base: Path, teacher: LiveTeacher, dialogues: list[Dialogue]
) -> None:
    found = []
    for checkpointing in (False, True):
        student = attach(
            load_model(tiny_base), LoraSettings(rank=4), seed=0, checkpointing=checkpointing
        )
        layers = student.model.model.layers
        assert all(layer.gradient_checkpointing == checkpointing for layer in layers)
        objective = NeoObjective(student.model, teacher, Mixture(ALPHA))
        objective(Batch(tuple(dialogues[:2]))).total.backward()
        found.append(gradients(student))
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected)


def test_the_shared_beginning_leaves_every_prompt_its_last_token() -> None:
    alike = [Dialogue((1, 2, 3, 4), 2, True), Dialogue((1, 2, 3, 5), 3, True)]
    assert shared_beginning(alike) == 1
    assert shared_beginning([Dialogue((1, 2), 1, True)] * 2) == 0
