"""The small operations of a step: the GPU's kernels, against the reference."""

import pytest
import torch
from torch import Tensor

from tsugiki_kernels.cuda import elementwise
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Activation
from tsugiki_kernels.reference import ReferenceBackend

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
DTYPES = pytest.mark.parametrize(
    "dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
REFERENCE = ReferenceBackend()


def close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCE[found.dtype]
    torch.testing.assert_close(found.cpu(), expected, atol=tolerance, rtol=tolerance)


@DTYPES
@pytest.mark.parametrize("dim", [16, 37, 1096])
def test_rms_norm_adds_normalises_and_multiplies(
    launcher: Launcher, dtype: torch.dtype, dim: int
) -> None:
    x, add = torch.randn(5, dim).to(dtype), torch.randn(5, dim).to(dtype)
    weight, index = torch.rand(3, dim).to(dtype), torch.tensor([2, 0, 1, 1, 0])
    own, out = x.clone().to(launcher.device), torch.empty_like(x, device=launcher.device)
    place = launcher.device
    elementwise.rms_norm(launcher, own, weight.to(place), index.to(place), 1e-5, out, add.to(place))
    expected = torch.empty_like(x)
    REFERENCE.rms_norm(x, weight, index, 1e-5, expected, add)
    assert torch.equal(own.cpu(), x)
    close(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_weight_multiplies_before_the_rounding(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    x, weight = torch.randn(16, 48).to(dtype), 1 + torch.rand(1, 48)
    out = torch.empty_like(x, device=launcher.device)
    place = launcher.device
    elementwise.rms_norm(launcher, x.to(place), weight.to(place), None, 1e-6, out)
    expected = torch.empty_like(x)
    REFERENCE.rms_norm(x, weight, None, 1e-6, expected)
    assert (out.cpu() != expected).float().mean() < 0.01  # sums of another order round elsewhere
    close(out, expected)


@DTYPES
def test_heads_are_normalised_in_place_each_by_itself(
    launcher: Launcher, dtype: torch.dtype
) -> None:
    expected, weight = torch.randn(3, 6 * 20).to(dtype), torch.rand(2, 20).to(dtype)
    index, fused = torch.tensor([1, 0, 1]), expected.clone().to(launcher.device)
    view, same = (t.unflatten(1, (6, 20))[:, 1:5] for t in (fused, expected))
    place = launcher.device
    elementwise.rms_norm(launcher, view, weight.to(place), index.to(place), 1e-6, view)
    REFERENCE.rms_norm(same, weight, index, 1e-6, same)
    close(fused, expected)


@DTYPES
@pytest.mark.parametrize("dim", [8, 64, 80])
def test_heads_of_a_fused_projection_are_rotated_in_place(
    launcher: Launcher, dtype: torch.dtype, dim: int
) -> None:
    expected = torch.randn(5, 4 * dim).to(dtype)
    angles = torch.rand(5, dim // 2) * 7
    cos, sin = angles.cos(), angles.sin()
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).to(dtype)
    fused = expected.clone().to(launcher.device)
    elementwise.rotate(launcher, fused.unflatten(1, (4, dim))[:, :3], table.to(launcher.device))
    REFERENCE.rotate(expected.unflatten(1, (4, dim))[:, :3], table)
    close(fused, expected)


@DTYPES
@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_pytorch_tanh"])
def test_the_gate_multiplies_its_activation(
    launcher: Launcher, dtype: torch.dtype, activation: Activation
) -> None:
    gate_up = (torch.randn(3, 2 * 45) * 6).to(dtype)
    gate_up[0, :5] = torch.tensor([0.0, -60.0, 60.0, -1e-4, float("nan")])
    out, expected = torch.empty(3, 45, dtype=dtype, device=launcher.device), torch.empty(3, 45)
    elementwise.gate(launcher, gate_up.to(launcher.device), activation, out)
    REFERENCE.gate(gate_up, activation, expected)
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(
        out.cpu().float(), expected, atol=tolerance, rtol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("width", [21, 2100])
def test_gather_picks_rows_bit_by_bit(launcher: Launcher, width: int) -> None:
    x, index = torch.randn(9, width).half(), torch.tensor([8, 0, 8])
    out = torch.empty(3, width, dtype=torch.float16, device=launcher.device)
    elementwise.gather(launcher, x.to(launcher.device), index.to(launcher.device), out)
    assert torch.equal(out.cpu(), x[index])


def test_the_bits_of_a_row_do_not_depend_on_the_other_rows(launcher: Launcher) -> None:
    rows = torch.randn(40, 96, device=launcher.device).bfloat16()
    weight = torch.rand(1, 96, device=launcher.device).bfloat16()
    out, alone = rows.clone(), rows.clone()
    elementwise.rms_norm(launcher, rows, weight, None, 1e-5, out)
    for i in (0, 7, 39):
        one = slice(i, i + 1)
        elementwise.rms_norm(launcher, rows[one], weight, None, 1e-5, alone[one])
        assert torch.equal(out[i], alone[i])


def test_refusals_name_the_tensor(launcher: Launcher) -> None:
    x, weight = torch.randn(4, 8), torch.ones(1, 8)
    with pytest.raises(BadArgument, match="out: expected shape"):
        elementwise.rms_norm(launcher, x, weight, None, 1e-5, torch.empty(4, 7))
    with pytest.raises(BadArgument, match="weight: expected dtype float32"):
        elementwise.rms_norm(launcher, x, weight.half(), None, 1e-5, x)
    with pytest.raises(BadArgument, match="cos_sin: expected dtype float32"):
        elementwise.rotate(launcher, x.view(4, 1, 8), torch.zeros(2, 4, 8).half())
    with pytest.raises(BadArgument, match="x: expected heads of an even width, found 1"):
        elementwise.rotate(launcher, x.view(4, 8, 1), torch.zeros(2, 4, 1))
    with pytest.raises(BadArgument, match="gate_up: expected shape"):
        elementwise.gate(launcher, x, "silu", torch.empty(4, 5))
    with pytest.raises(BadArgument, match="index: expected contiguous int64"):
        elementwise.gather(launcher, x, torch.zeros(3).int(), torch.empty(3, 8))
