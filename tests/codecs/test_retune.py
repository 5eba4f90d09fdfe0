"""What codecs offer for training: nothing at first, the packed values in the end, same bytes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import ModuleStats, Packed
from tsugiki.codecs.retune import TRAINABLE
from tsugiki.codecs.trainable import TrainableChange

ROWS, COLUMNS = 40, 64
OPTIONS: dict[str, dict[str, Any]] = {
    "deltadq": {"alpha": 4, "bits": 2, "group_size": 4, "rows_per_step": 16, "bias_bits": 8},
    "bitdelta": {"bias_bits": 8},
    "caldera": {"rank": 5, "factor_bits": 16},
    "lora": {"rank": 5},
    "saten": {"rank": 5, "density": 0.1, "core_bits": 16, "value_bits": 16},
}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=sorted(TRAINABLE))
def packed(request: pytest.FixtureRequest) -> Packed:
    base, tuned = draw(0, ROWS, COLUMNS), draw(0, ROWS, COLUMNS) + 0.1 * draw(1, ROWS, COLUMNS)
    stats = ModuleStats(draw(2, COLUMNS), torch.ones(COLUMNS), 8)
    options = {**OPTIONS[request.param], "name": "a.weight"}
    return CODECS[request.param].compress(base, tuned, stats, options)


def moved(packed: Packed) -> TrainableChange:
    """With every trained value a few percent away from its start."""
    change = TRAINABLE[packed.codec](packed, torch.float32)
    with torch.no_grad():
        for seed, parameter in enumerate(change.kinds().values()):
            parameter.copy_(0.05 * draw(10 + seed, *parameter.shape))
    return change


def contribution(packed: Packed, x: Tensor) -> Tensor:
    """What the packed linear adds to the base's output, in float64."""
    dense = CODECS[packed.codec].effective(torch.zeros(packed.shape), packed)
    y = x.double() @ dense.weight.double().T
    return y if dense.bias is None else y + dense.bias.double()


def test_nothing_is_added_before_training(packed: Packed) -> None:
    change = TRAINABLE[packed.codec](packed, torch.float32)
    assert float(change(draw(5, 3, COLUMNS)).detach().abs().max()) == 0.0
    again = change.pack()
    for part, stored in packed.tensors.items():
        if part != "bias":  # its scale is fitted anew
            assert torch.equal(again.tensors[part], stored), part


def test_what_was_trained_is_what_is_packed_in_as_many_bytes(packed: Packed) -> None:
    change, x = moved(packed), draw(6, 7, COLUMNS)
    after = change.pack()
    CODECS[packed.codec].validate(after)
    assert {p: (t.dtype, t.shape) for p, t in after.tensors.items()} == {
        p: (t.dtype, t.shape) for p, t in packed.tensors.items()
    }
    added = contribution(after, x) - contribution(packed, x)
    expected = change(x).detach().double()
    assert float(expected.abs().max()) > 0.01
    # float16 steps and factors, biases of 8 bits
    assert float((added - expected).norm() / expected.norm()) < 0.2


def test_gradients_are_those_of_the_dense_weight(packed: Packed) -> None:
    """d loss / d value = sum over the weight of d loss / d W times d W / d value, in float64."""
    change, x, target = moved(packed), draw(7, 9, COLUMNS), draw(8, 9, ROWS)
    (change(x) * target).sum().backward()
    for kind, parameter in change.kinds().items():
        assert parameter.grad is not None, kind
        direction = draw(9, *parameter.shape)
        slope = float((parameter.grad.double() * direction.double()).sum())
        values = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * 0.01 * direction)
                values.append(float((change(x).double() * target.double()).sum()))
                parameter.sub_(sign * 0.01 * direction)
        # every kind enters linearly: the difference quotient is exact but for rounding
        assert slope == pytest.approx((values[0] - values[1]) / 0.02, rel=2e-3, abs=2e-3), kind
