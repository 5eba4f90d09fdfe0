"""What a variant adds to a linear, as kernels read it: the resident form of each codec's deltas.

Owns: the formula, shapes and dtypes of each kind. Knows nothing of files and backends.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from tsugiki_kernels.codebooks import IndexMap


@dataclass(frozen=True, slots=True)
class CodedBias:
    """b[r] = scale * (code_r - 2^(bits - 1)), in float32."""

    codes: Tensor  # uint8 [ceil(out * bits / 8)]; code r at bit r * bits, least significant first
    bits: int  # 2 .. 8
    scale: float


Bias = Tensor | CodedBias  # float32 [out], or codes


@dataclass(frozen=True, slots=True)
class SparseDelta:
    """A quantized sparse delta whose kept columns are shared by tiles of rows (deltadq).

    D[r, columns[t, j]] += S[r // rows_per_step] * (code(t, j, r % rows_per_mask) - zero)
    with S = step * gain rounded to float32 and t = r // rows_per_mask. Tiles: ceil(out /
    rows_per_mask); the last may be ragged and its missing rows hold code 0, which is never read
    into an output.
    """

    shape: tuple[int, int]  # (out, in), in <= 65536
    rows_per_mask: int
    rows_per_step: int
    bits: int  # 1, 2, 4 or 8
    zero: float
    gain: float
    # uint16 [tiles, kept], ascending within a tile; other deltas may share it: it is never copied
    columns: Tensor
    # uint8 [tiles, ceil(kept * rows_per_mask * bits / 8)]; value j * rows_per_mask + r of a tile
    # sits at bit (j * rows_per_mask + r) * bits, least significant bit first
    codes: Tensor
    step: Tensor  # float16 [ceil(out / rows_per_step)]
    bias: Bias | None  # added once per row of x


@dataclass(frozen=True, slots=True)
class LowRankDelta:
    """y += scale * (x A^T) B^T (lora)."""

    a: Tensor  # [rank, in], activation dtype
    b: Tensor  # [out, rank], activation dtype
    scale: float
    bias: Bias | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.b.shape[0], self.a.shape[1])


@dataclass(frozen=True, slots=True)
class SignDelta:
    """D[r, c] = S[r] * (+1 if bit c of row r is set else -1), with S = scale * gain rounded to
    float32 (bitdelta)."""

    shape: tuple[int, int]
    gain: float
    signs: Tensor  # uint8 [out, ceil(in / 8)], column c at byte c // 8, bit c % 8
    scale: Tensor  # float16 [out]
    bias: Bias | None


@dataclass(frozen=True, slots=True)
class DenseDelta:
    """D as it is: y += x D^T + bias. Either part may be missing (a bias alone is a delta too)."""

    shape: tuple[int, int]
    weight: Tensor | None  # [out, in], activation dtype
    bias: Bias | None


@dataclass(frozen=True, slots=True)
class CodebookDelta:
    """A change of the codebooks of a sketched linear (sketch).

    D[r, c] = S[r] * values[r, c // (in / groups), index(r, c)], with S = step * gain rounded to
    float32, step 1 where there is none.
    """

    index: IndexMap  # the base's; never copied
    gain: float
    values: Tensor  # float16 or int8 [out, groups, entries]
    step: Tensor | None  # float16 [out]; with int8 values
    bias: Bias | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.index.shape


class Stage(NamedTuple):
    """One core met by the inputs: out[p, m, q] = sum over k of core[m, k] in[p, k, q]."""

    outer: int  # how many p
    inputs: int  # k
    outputs: int  # m
    inner: int  # q

    @property
    def cost(self) -> int:
        """Multiply-adds for one row of x."""
        return self.outer * self.inputs * self.outputs * self.inner


MAX_STAGES = 8


@dataclass(frozen=True, slots=True)
class TensorTrainDelta:
    """A tensor train and sparse entries beside it (saten): D = T + E.

    x T^T is x led through the stages in order: the first reads x, its elements in order, the last
    leaves the outputs. Without stages T is 0. E has, in row r, the entries row_start[r] ..
    row_start[r + 1]: E[r, column[i]] = S[r // rows_per_step] * (value[i] - zero), with S = step *
    gain rounded to float32.
    """

    shape: tuple[int, int]  # (out, in), in <= 65536
    stages: tuple[Stage, ...]  # at most MAX_STAGES
    cores: Tensor  # activation dtype; of each stage [outputs, inputs], one behind the other
    rows_per_step: int
    zero: float
    gain: float
    row_start: Tensor  # int32 [out + 1]
    column: Tensor  # uint16 [entries], ascending within a row
    value: Tensor  # uint8 or float16 [entries]
    step: Tensor  # float16 [ceil(out / rows_per_step)]
    bias: Bias | None


Delta = SparseDelta | LowRankDelta | SignDelta | DenseDelta | CodebookDelta | TensorTrainDelta


@dataclass(frozen=True, slots=True)
class Placed:
    """A delta and the output column of the fused linear at which it starts."""

    offset: int
    delta: Delta
