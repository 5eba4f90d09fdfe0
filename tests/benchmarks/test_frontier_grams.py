"""E[x x^T] of linears, collected while a model runs."""

import torch
from torch import Tensor

from benchmarks.frontier.grams import Grams


class Twins(torch.nn.Module):
    """Two linears on one input, a third on what the first makes of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (torch.nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        done: Tensor = self.c(self.a(x)) + self.b(x)
        return done


def test_grams_leave_out_the_first_position_and_are_shared_by_linears_of_one_input() -> None:
    model, grams = Twins(), Grams({"a.weight", "b.weight", "c.weight"})
    texts = [torch.randn(1, length, 6) for length in (5, 9)]
    with torch.no_grad(), grams.collected(model):
        for x in texts:
            model(x)
    model(torch.randn(1, 4, 6))  # not collected
    rows = torch.cat([x[0, 1:] for x in texts])
    expected = rows.T @ rows / len(rows)
    found = {name: grams.of(f"{name}.weight") for name in "abc"}
    assert all(found[name] is not None for name in "abc")
    torch.testing.assert_close(found["a"], expected)
    assert torch.equal(found["a"], found["b"])  # type: ignore[arg-type]
    inner = model.a(rows).detach()
    torch.testing.assert_close(found["c"], inner.T @ inner / len(rows))
    assert grams.of("absent.weight") is None
