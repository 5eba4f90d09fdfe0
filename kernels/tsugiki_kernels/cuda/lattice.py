"""Linears on the E8P lattice, on the GPU: rows rotated, multiplied with decoded weights, or with a
weight that was rebuilt.

Owns: the tables of src/lattice.cuh, the layout of rotated rows and the launches. Factors are parts
of low-rank lists like any others (low_rank.py).

Bytes of a call with few rows: the codes once for each 8 or 32 of them; the rotated rows, 4 bytes a
value, once for 32 outputs (from L2); out written. With many rows the weight is written and read.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from tsugiki_kernels.check import check_spans, check_strided, check_tensor
from tsugiki_kernels.check_weights import check_lattice_weight
from tsugiki_kernels.cuda import linear as dense
from tsugiki_kernels.cuda.arguments import dtype_name
from tsugiki_kernels.cuda.kernels import start
from tsugiki_kernels.cuda.launcher import Argument, Float32, Int32, Int64
from tsugiki_kernels.cuda.program import Execution
from tsugiki_kernels.hadamard import Rotation, paley, signs
from tsugiki_kernels.interface import Span
from tsugiki_kernels.lattice import (
    RESIDUAL_FACTOR,
    LatticeWeight,
    e8_ball,
    e8p_magnitudes,
)

REBUILD_FROM = 64  # rows of a call
TILE_ROWS = 8
CHUNK_COLUMNS = 256


def linear(
    execution: Execution,
    x: Tensor,
    weight: LatticeWeight,
    bias: Tensor | None,
    out: Tensor,
    spans: Sequence[Span],
) -> None:
    """See ReadsLattices.linear_lattice. From REBUILD_FROM rows of the call on, whoever they belong
    to, the weight is rebuilt and rounded to the dtype of x, and cuBLAS multiplies: 16-bit results
    of a row differ by that rounding, so load tells them apart, as with cuBLAS's own linears.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    _check(x, weight, bias, out, spans)
    rows = sum(stop - start for start, stop in spans)
    if rows >= REBUILD_FROM:
        rebuilt = execution.scratch.take(x.dtype, math.prod(weight.shape)).view(weight.shape)
        rebuild(execution, weight, rebuilt)
        execution.do(lambda: dense.linear(x, rebuilt, bias, out, spans))
        return
    added = None if bias is None else bias.float()
    for first, last in spans:
        if first < last:
            _multiply(execution, x[first:last], weight, added, out[first:last])


def rebuild(execution: Execution, weight: LatticeWeight, out: Tensor) -> None:
    """out = W, contiguous [out, in] of any activation dtype.

    Raises:
        BadArgument: out does not fit.
    """
    name = dtype_name("out", out)
    check_tensor("out", out, (out.dtype,), weight.shape)
    rotation, device = weight.rotation, execution.launcher.device
    own_signs, matrix = _rotation(rotation, device, back=True)
    start(
        execution.launcher,
        f"tsugiki_lattice_rebuild_{name}",
        (
            weight.codes,
            weight.residual,
            _tables(device),
            weight.scales,
            own_signs,
            matrix,
            out,
            *_sizes(rotation),
            Int32(weight.bits),
            Float32(1 / RESIDUAL_FACTOR.get(weight.bits, 1.0)),
            Float32(_norm(rotation)),
        ),
        outputs=weight.shape[0],
        width=weight.shape[1],
    )


def _check(
    x: Tensor, weight: LatticeWeight, bias: Tensor | None, out: Tensor, spans: Sequence[Span]
) -> None:
    check_lattice_weight(weight)
    check_spans(x, out, len(spans), spans)
    outputs, inputs = weight.shape
    check_strided("x", x, (x.dtype,), (len(x), inputs))
    check_strided("out", out, (out.dtype,), (len(x), outputs))
    if bias is not None:
        check_tensor("bias", bias, (x.dtype, torch.float32), (outputs,))


def _multiply(
    execution: Execution, x: Tensor, weight: LatticeWeight, bias: Tensor | None, out: Tensor
) -> None:
    rows, (outputs, inputs) = len(x), weight.shape
    launcher, rotation = execution.launcher, weight.rotation
    own_signs, matrix = _rotation(rotation, launcher.device, back=False)
    rotated = execution.scratch.take(torch.float16, rotated_values(rows, inputs))
    scales = execution.scratch.take(torch.float32, rows)
    factor = RESIDUAL_FACTOR.get(weight.bits, 1.0)
    start(
        launcher,
        f"tsugiki_lattice_rotate_{dtype_name('x', x)}",
        (
            *(x, Int64(x.stride(0)), own_signs, matrix, rotated, scales),
            *_sizes(rotation),
            Float32(_norm(rotation) / factor),
        ),
        rows=rows,
        width=inputs,
    )
    at_once = 8 if rows <= TILE_ROWS else 32
    start(
        launcher,
        f"tsugiki_lattice_linear_{at_once}_{dtype_name('out', out)}",
        (
            *(rotated, scales, weight.codes, weight.residual, _tables(launcher.device)),
            *(weight.scales, bias, out, Int64(out.stride(0))),
            *map(Int32, (outputs, weight.codes.shape[1], weight.bits, rows)),
            Float32(factor),
        ),
        outputs=outputs,
        rows=rows,
    )


def rotated_values(rows: int, width: int) -> int:
    """float16 values that rotated rows take (src/rotated.cuh): two for each, in whole tiles."""
    tiles, chunks = -(-rows // TILE_ROWS), -(-width // CHUNK_COLUMNS)
    return tiles * TILE_ROWS * chunks * CHUNK_COLUMNS * 2


def _sizes(rotation: Rotation) -> tuple[Argument, ...]:
    return Int32(rotation.width), Int32(rotation.order), Int32(1 << rotation.doublings)


def _norm(rotation: Rotation) -> float:
    """Of a rotation and of weights that are decoded twice as large."""
    return 0.5 / math.sqrt(rotation.block)


@lru_cache(maxsize=64)
def _rotation(
    rotation: Rotation, device: torch.device, *, back: bool
) -> tuple[Tensor, Tensor | None]:
    """Signs and matrix on the device; `back`: of the inverse."""
    matrix = paley(rotation.order)
    own = None if rotation.order == 1 else (matrix.T if back else matrix).contiguous().to(device)
    return signs(rotation.width).to(device), own


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> Tensor:
    """int32 [3, 256], words of eight nibbles (src/lattice.cuh): 2 (m + 3.5) of each magnitude m,
    the last one inverted where their sum is odd; what a code's high byte flips in those; 2 v + 8 of
    each point v of the small ball."""
    magnitudes = (2 * e8p_magnitudes() + 7).long()
    magnitudes[:, -1] ^= 14 * (e8p_magnitudes().sum(1).long() & 1)
    high = torch.arange(256)[:, None]
    negative = high >> torch.arange(8) & 1
    negative[:, -1] = negative[:, :-1].sum(1) & 1
    flips = 14 * negative + 1 - (high >> 7)
    ball = (2 * e8_ball() + 8).long()
    return torch.stack([_words(nibbles) for nibbles in (magnitudes, flips, ball)]).to(device)


def _words(nibbles: Tensor) -> Tensor:
    """int32 [256] of [256, 8]: even columns are the lower four nibbles."""
    column = torch.arange(8)
    words = (nibbles << 4 * (column // 2 + column % 2 * 4)).sum(1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()
