"""Tensor trains of matrices: what they are, TT-SVD, and the reshapes that are worth trying.

Owns: modes, decomposition by error or rank, the dense matrix again, the order in which a product
meets the cores. Does not know: what is stored in how many bits (saten.py), sparse parts.

Source: TT-SVD (Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 2011, algorithm 1);
TT matrices as in Novikov et al. (arXiv 1509.06569). Saten (arXiv 2505.14871) calls the forms TT
matrix and TT vector. Here both are one: core k takes a_k of the outputs' factors and b_k of the
inputs', of which either may be 1.

    W[(i_1 .. i_d), (j_1 .. j_d)] = G_1[:, i_1, j_1, :] G_2[:, i_2, j_2, :] ... G_d[:, i_d, j_d, :]

i_1 and j_1 are the most significant digits. Modes (out, 1), (1, in) are a plain low rank.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tsugiki.codecs.lora import truncated_svd
from tsugiki_kernels.deltas import MAX_STAGES, Stage

Modes = tuple[tuple[int, int], ...]  # (a_k, b_k)
BISECTIONS = 7


@dataclass(frozen=True, slots=True)
class TensorTrain:
    """Cores float32 [r_(k-1), a_k, b_k, r_k] with r_0 = r_d = 1."""

    cores: tuple[Tensor, ...]

    @property
    def modes(self) -> Modes:
        """(a_k, b_k)."""
        return tuple((core.shape[1], core.shape[2]) for core in self.cores)

    @property
    def ranks(self) -> tuple[int, ...]:
        """r_1 .. r_(d-1)."""
        return tuple(core.shape[3] for core in self.cores[:-1])

    @property
    def parameters(self) -> int:
        """Elements of all cores."""
        return sum(core.numel() for core in self.cores)

    def dense(self) -> Tensor:
        """float32 [out, in]."""
        whole = self.cores[0].flatten(0, 2)
        for core in self.cores[1:]:
            whole = (whole @ core.flatten(1)).reshape(-1, core.shape[3])
        return folded(whole, self.modes)

    def rows(self, ids: Tensor) -> Tensor:
        """The rows `ids` (int64 [n]) of the dense matrix, [n, in]; costs in proportion to n."""
        digits, left = [], ids
        for outputs, _ in reversed(self.modes):
            digits.append(left % outputs)
            left = left // outputs
        state, width = torch.ones(len(ids), 1, 1), 1
        for core, digit in zip(self.cores, reversed(digits), strict=True):
            chosen = core[:, digit].transpose(0, 1)  # [n, r, b, r']
            width *= core.shape[2]
            state = (state @ chosen.flatten(2)).reshape(len(ids), width, core.shape[3])
        return state.flatten(1)


def shape_of(modes: Modes) -> tuple[int, int]:
    """(out, in)."""
    return math.prod(a for a, _ in modes), math.prod(b for _, b in modes)


def largest_ranks(modes: Modes) -> list[int]:
    """The ranks that are always enough: the smaller side of each unfolding."""
    sizes = [a * b for a, b in modes]
    return [min(math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes))]


def parameters_of(modes: Modes, ranks: Sequence[int]) -> int:
    """Elements of all cores."""
    ends = (1, *ranks, 1)
    return sum(r * a * b * s for (r, s), (a, b) in zip(pairwise(ends), modes, strict=True))


def unfolded(matrix: Tensor, modes: Modes) -> Tensor:
    """[out, in] with the digits of each core side by side: [a_1 b_1, a_2 b_2 ...] flat."""
    d = len(modes)
    digits = matrix.reshape([a for a, _ in modes] + [b for _, b in modes])
    order = [place for k in range(d) for place in (k, d + k)]
    return digits.permute(order).reshape(-1)


def folded(flat: Tensor, modes: Modes) -> Tensor:
    """The inverse of `unfolded`."""
    d = len(modes)
    digits = flat.reshape([length for pair in modes for length in pair])
    order = [2 * k for k in range(d)] + [2 * k + 1 for k in range(d)]
    return digits.permute(order).reshape(shape_of(modes))


def decompose(
    matrix: Tensor, modes: Modes, relative_error: float = 0.0, rank: int | None = None
) -> TensorTrain:
    """TT-SVD of a matrix [out, in]; cores of equal weight at every bond.

    Without `rank` the result is off by at most relative_error |matrix| (Frobenius); `rank` bounds
    every rank instead, or as well. Unfoldings beyond lora.EXACT_SVD_UP_TO on both sides are then
    decomposed by a randomized SVD.
    """
    left = unfolded(matrix.float(), modes)
    allowed = (relative_error * float(left.norm())) ** 2 / max(1, len(modes) - 1)
    cores, before = [], torch.ones(1)
    for outputs, inputs in modes[:-1]:
        u, s, v = _svd(left.reshape(len(before) * outputs * inputs, -1), rank)
        kept = max(1, min(_rank_for(s, allowed), rank or len(s)))
        u, s, v = u[:, :kept], s[:kept].clamp_min(1e-30), v[:kept]
        core = u.reshape(len(before), outputs * inputs, kept) / before.sqrt()[:, None, None]
        cores.append((core * s.sqrt()).reshape(len(before), outputs, inputs, kept))
        left, before = s[:, None] * v, s
    last = left / before.sqrt()[:, None]
    cores.append(last.reshape(len(before), *modes[-1], 1))
    return TensorTrain(tuple(core.contiguous() for core in cores))


def _svd(unfolding: Tensor, rank: int | None) -> tuple[Tensor, Tensor, Tensor]:
    if rank is not None:
        return truncated_svd(unfolding, min(rank, *unfolding.shape))
    u, s, v = torch.linalg.svd(unfolding, full_matrices=False)
    return u, s, v


def _rank_for(singular: Tensor, allowed: float) -> int:
    """The least rank whose tail has at most this energy."""
    energy = singular.double().square()
    tails = energy.flip(0).cumsum(0).flip(0)  # of keeping 0, 1, 2 ...
    return int((tails > allowed).sum())


def low_rank_modes(shape: tuple[int, int]) -> Modes:
    """A plain low rank."""
    return ((shape[0], 1), (1, shape[1]))


def divisors(length: int) -> list[int]:
    """Ascending."""
    return [d for d in range(1, length + 1) if length % d == 0]


def balanced(length: int, count: int) -> tuple[int, ...]:
    """`count` factors, as equal as they can be, the larger ones first."""
    if count == 1:
        return (length,)
    wanted = length ** (1 / count)
    first = min(divisors(length), key=lambda d: abs(math.log(d / wanted)))
    return tuple(sorted((first, *balanced(length // first, count - 1)), reverse=True))


def candidates(shape: tuple[int, int]) -> dict[str, Modes]:
    """Reshapes and orders of the factors that are worth trying, by name."""
    out, inputs = shape
    a2, b2, a3, b3 = balanced(out, 2), balanced(inputs, 2), balanced(out, 3), balanced(inputs, 3)
    found: dict[str, Modes] = {
        "low rank": low_rank_modes(shape),
        "vector": (*((a, 1) for a in a2), *((1, b) for b in b2)),
        "vector, inputs first": (*((1, b) for b in b2), *((a, 1) for a in a2)),
        "vector, alternating": tuple(
            mode for a, b in zip(a2, b2, strict=True) for mode in ((a, 1), (1, b))
        ),
        "matrix of three": tuple(zip(a3, b3, strict=True)),
    }
    return found | {_name(modes): modes for modes in _pairs(shape)}


def _pairs(shape: tuple[int, int]) -> Iterator[Modes]:
    """TT matrices of two cores: for each cut of the outputs the cut of the inputs that makes the
    cores most nearly equal."""
    for a in divisors(shape[0])[1:-1]:
        b = min(divisors(shape[1]), key=lambda b: abs(math.log(a * a * b * b / math.prod(shape))))
        yield ((a, b), (shape[0] // a, shape[1] // b))


def _name(modes: Modes) -> str:
    return "matrix " + " ".join(f"{a}x{b}" for a, b in modes)


def within(matrix: Tensor, modes: Modes, parameters: int) -> TensorTrain:
    """The train of the least error found that has at most so many parameters (one rank at least).

    Two cores: the largest rank. More: bisection over the relative error.
    """
    if len(modes) == 2:
        each = sum(a * b for a, b in modes)
        return decompose(matrix, modes, rank=max(1, min(parameters // each, *largest_ranks(modes))))
    low, high = 0.0, 1.0
    best = decompose(matrix, modes, rank=1)
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = decompose(matrix, modes, relative_error=middle)
        if found.parameters <= parameters:
            best, high = found, middle
        else:
            low = middle
    return best


def best_modes(matrix: Tensor, parameters: int) -> dict[str, float]:
    """The relative error of every candidate at so many parameters, least first."""
    norm = float(matrix.norm())
    shape = (matrix.shape[0], matrix.shape[1])
    errors = {
        name: float((within(matrix, modes, parameters).dense() - matrix).norm()) / norm
        for name, modes in candidates(shape).items()
    }
    return dict(sorted(errors.items(), key=lambda item: item[1]))


def stages(train: TensorTrain) -> tuple[tuple[Stage, ...], Tensor]:
    """How a product meets the cores, from the end that costs fewer multiply-adds, and the cores as
    the stages read them, float32, flat.

    Raises:
        ValueError: more than MAX_STAGES cores.
    """
    if len(train.cores) > MAX_STAGES:
        raise ValueError(f"{len(train.cores)} cores; kernels meet at most {MAX_STAGES}")
    ways = [_from_the_right(train), _from_the_left(train)]
    return min(ways, key=lambda way: sum(stage.cost for stage in way[0]))


def _from_the_right(train: TensorTrain) -> tuple[tuple[Stage, ...], Tensor]:
    """The state is (j_1 .. j_(k-1)), (j_k, r_k), (i_(k+1) .. i_d); core k makes (r_(k-1), i_k)."""
    found, flat, inner = [], [], 1
    for k, core in reversed(list(enumerate(train.cores))):
        left, outputs, inputs, right = core.shape
        outer = math.prod(b for _, b in train.modes[:k])
        found.append(Stage(outer, inputs * right, left * outputs, inner))
        flat.append(core.flatten())
        inner *= outputs
    return tuple(found), torch.cat(flat)


def _from_the_left(train: TensorTrain) -> tuple[tuple[Stage, ...], Tensor]:
    """The state is (i_1 .. i_(k-1)), (r_(k-1), j_k), (j_(k+1) .. j_d); core k makes (i_k, r_k)."""
    found, flat, outer = [], [], 1
    for k, core in enumerate(train.cores):
        left, outputs, inputs, right = core.shape
        inner = math.prod(b for _, b in train.modes[k + 1 :])
        found.append(Stage(outer, left * inputs, outputs * right, inner))
        flat.append(core.permute(1, 3, 0, 2).flatten())
        outer *= outputs
    return tuple(found), torch.cat(flat)
