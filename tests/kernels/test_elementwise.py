"""Norms, rotations, gates and gathers: both backends against torch's own functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Activation, KernelBackend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def close(found: Tensor, expected: Tensor) -> None:
    tolerance = TOLERANCES[found.dtype]
    torch.testing.assert_close(found.float(), expected.float(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 37, 576])
def test_rms_norm_adds_normalises_and_multiplies(
    kernels: KernelBackend, dtype: torch.dtype, dim: int
) -> None:
    x, add, weight = (
        torch.randn(5, dim).to(dtype),
        torch.randn(5, dim).to(dtype),
        torch.rand(1, dim),
    )
    summed, out = x + add, torch.empty_like(x)
    kernels.rms_norm(x, weight.to(dtype), None, 1e-5, out, add)
    assert torch.equal(x, summed)
    close(out, F.rms_norm(summed, (dim,), None, 1e-5) * weight[0].to(dtype))


def test_rms_norm_takes_each_rows_own_weight(kernels: KernelBackend) -> None:
    x, weight, index = torch.randn(4, 24), torch.rand(3, 24), torch.tensor([2, 0, 0, 1])
    out = torch.empty_like(x)
    kernels.rms_norm(x, weight, index, 1e-6, out)
    close(out, F.rms_norm(x, (24,), None, 1e-6) * weight[index])


def test_a_float32_weight_multiplies_before_the_rounding(kernels: KernelBackend) -> None:
    x, weight = torch.randn(64, 48).bfloat16(), 1 + torch.rand(1, 48)
    out = torch.empty_like(x)
    kernels.rms_norm(x, weight, None, 1e-6, out)
    expected = (F.rms_norm(x.float(), (48,), None, 1e-6) * weight).bfloat16()
    assert (out != expected).float().mean() < 0.01  # another order of sums may cross a boundary
    close(out, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_heads_are_normalised_in_place_each_by_itself(
    kernels: KernelBackend, dtype: torch.dtype
) -> None:
    fused = torch.randn(3, 6 * 20).to(dtype)
    before = fused.clone()
    view, weight = fused.unflatten(1, (6, 20))[:, 1:5], torch.rand(2, 20).to(dtype)
    index = torch.tensor([1, 0, 1])
    kernels.rms_norm(view, weight, index, 1e-6, view)
    expected = before.unflatten(1, (6, 20)).clone()
    normed = F.rms_norm(expected[:, 1:5], (20,), None, 1e-6) * weight[index][:, None]
    expected[:, 1:5] = normed
    close(fused, expected.flatten(1))
    assert torch.equal(fused[:, :20], before[:, :20])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 64, 80])
def test_rotation_is_that_of_the_complex_plane(
    kernels: KernelBackend, dtype: torch.dtype, dim: int
) -> None:
    x, angles = torch.randn(5, 3, dim).to(dtype), torch.rand(5, 1, dim // 2) * 7
    cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
    table = torch.stack((torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1))).squeeze(2)
    plane = torch.complex(x.float()[..., : dim // 2], x.float()[..., dim // 2 :])
    turned = plane * torch.complex(cos.float(), sin.float())
    kernels.rotate(x, table)
    close(x, torch.cat((turned.real, turned.imag), -1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("activation", "function"),
    [
        ("silu", F.silu),
        ("gelu", F.gelu),
        ("gelu_pytorch_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ],
)
def test_the_gate_multiplies_its_activation(
    kernels: KernelBackend,
    dtype: torch.dtype,
    activation: Activation,
    function: "type[F.silu]",
) -> None:
    gate_up = (torch.randn(3, 2 * 45) * 6).to(dtype)
    gate_up[0, :4] = torch.tensor([0.0, -60.0, 60.0, -1e-4])
    out = torch.empty(3, 45, dtype=dtype)
    kernels.gate(gate_up, activation, out)
    gate, up = gate_up.float().chunk(2, -1)
    close(out, function(gate) * up)


def test_a_gate_keeps_nan_visible(kernels: KernelBackend) -> None:
    gate_up, out = torch.ones(1, 64), torch.empty(1, 32)
    gate_up[0, 3] = float("nan")
    kernels.gate(gate_up, "silu", out)
    assert out.isnan().sum() == 1


def test_gather_picks_rows(kernels: KernelBackend) -> None:
    x, index = torch.randn(9, 21).bfloat16(), torch.tensor([8, 0, 8])
    out = torch.empty(3, 21, dtype=torch.bfloat16)
    kernels.gather(x, index, out)
    assert torch.equal(out, x[index])


@pytest.mark.compiler
def test_the_bits_of_a_row_do_not_depend_on_the_other_rows(cpu_backend: CpuBackend) -> None:
    rows = torch.randn(700, 96).bfloat16()
    weight, out, alone = torch.rand(1, 96).bfloat16(), rows.clone(), rows.clone()
    cpu_backend.rms_norm(rows, weight, None, 1e-5, out)
    for i in (0, 7, 699):
        cpu_backend.rms_norm(rows[i : i + 1], weight, None, 1e-5, alone[i : i + 1])
        assert torch.equal(out[i], alone[i])


@pytest.mark.compiler
def test_bad_arguments_are_named(cpu_backend: CpuBackend) -> None:
    x, weight = torch.randn(4, 8), torch.ones(1, 8)
    with pytest.raises(BadArgument, match="out: expected shape"):
        cpu_backend.rms_norm(x, weight, None, 1e-5, torch.empty(4, 7))
    with pytest.raises(BadArgument, match="weight: expected shape"):
        cpu_backend.rms_norm(x, torch.ones(1, 9), None, 1e-5, x)
    with pytest.raises(BadArgument, match="index: expected contiguous int64"):
        cpu_backend.rms_norm(x, weight, torch.zeros(3, dtype=torch.int64), 1e-5, x)
    with pytest.raises(BadArgument, match=r"cos_sin: expected torch\.float32"):
        cpu_backend.rotate(x.view(4, 1, 8), torch.zeros(2, 4, 8, dtype=torch.bfloat16))
    with pytest.raises(BadArgument, match="gate_up: expected shape"):
        cpu_backend.gate(x, "silu", torch.empty(4, 5))
    with pytest.raises(BadArgument, match="index: beyond the 4 rows"):
        cpu_backend.gather(x, torch.tensor([4]), torch.empty(1, 8))
