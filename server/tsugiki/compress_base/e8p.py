"""The nearest codeword: encoders of the codebooks of tsugiki_kernels/lattice.py.

Owns: exact nearest-neighbour search in the E8P codebook without looking at all 65,536 words, and
the two-stage codes of 3 and 4 bits. Does not know: weights, scales, feedback (ldlq.py).

Of the magnitudes the 227 inside the ball are closed under permutation and fall into 7 types, so
that the best word of a type has its magnitudes in the order of the input's; a wrong parity is
cheapest put right at the smallest input, which meets a 1/2 in every type. The 29 others are tried
one by one. Both shifts are tried.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki_kernels.lattice import (
    GROUP,
    PADDED_NORM,
    RESIDUAL_DTYPE,
    RESIDUAL_FACTOR,
    SHIFT,
    e8_ball,
    e8p,
    e8p_magnitudes,
)

IN_BALL = 227
# magnitudes of the types, largest first: how many 5/2 and 3/2, the others 1/2
TYPES = torch.tensor(
    [
        [2.5] * fives + [1.5] * threes + [0.5] * (GROUP - fives - threes)
        for fives, threes in ((0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0), (1, 1))
    ]
)
PADDING_TYPE = torch.tensor([1.5] * 5 + [0.5] * 3)
SIGN_BITS = 8 + torch.arange(7)
PLACES = 3 ** torch.arange(GROUP)  # magnitudes 1/2, 3/2, 5/2 as digits of a number


class _Tables(NamedTuple):
    """What the search looks things up in, on one device."""

    types: Tensor  # float32 [7, 8]
    types_are_odd: Tensor  # bool [7]
    padding_type: Tensor  # float32 [8]
    beyond: Tensor  # float32 [29, 8]: the vectors beyond the ball
    halves: Tensor  # int64 [29, 3]: where those are 1/2
    numbered: Tensor  # int64 [3^8]: which vector of the ball has these digits
    places: Tensor  # int64 [8]
    sign_bits: Tensor  # int64 [7]
    ball: Tensor  # float32 [256, 8]


class Encoded(NamedTuple):
    """Codes of groups of eight, and what they stand for."""

    codes: Tensor  # int16 [n]
    residual: Tensor | None  # see LatticeWeight
    values: Tensor  # float32 [n, 8]


def encode(groups: Tensor, bits: int) -> Encoded:
    """The code of each row of float32 [n, 8]; 3 and 4 bits encode what the first code leaves."""
    codes = nearest(groups)
    values = e8p(codes)
    if bits == 2:
        return Encoded(codes, None, values)
    left = (groups - values) * RESIDUAL_FACTOR[bits]
    second = nearest(left) if bits == 4 else nearest_in_ball(left)
    added = e8p(second) if bits == 4 else _tables(groups.device).ball[second.long()]
    residual = second.to(RESIDUAL_DTYPE[bits])
    return Encoded(codes, residual, values + added / RESIDUAL_FACTOR[bits])


def nearest_in_ball(groups: Tensor) -> Tensor:
    """uint8 [n]: the nearest point of the 256 of E8."""
    points = _tables(groups.device).ball
    return (2 * groups @ points.T - points.square().sum(1)).argmax(1).to(torch.uint8)


def nearest(groups: Tensor) -> Tensor:
    """int16 [n]: the nearest E8P word of each row of float32 [n, 8]."""
    up, down = (_shifted(groups - shift) for shift in (SHIFT, -SHIFT))
    code = torch.where(down.score > up.score, down.code | 1 << 15, up.code)
    return torch.where(code >= 1 << 15, code - (1 << 16), code).to(torch.int16)


class _Found(NamedTuple):
    code: Tensor  # int64 [n], without the shift's bit
    score: Tensor  # |x|^2 - |x - word|^2, x unshifted but for a constant


def _shifted(x: Tensor) -> _Found:
    """The nearest word of one shift. x: what is left of the input without it."""
    tables = _tables(x.device)
    types = tables.types
    size, negative = x.abs(), x < 0
    odd_signs = (negative.sum(1) & 1).bool()
    ordered, order = size.sort(dim=1, descending=True)
    wrong = tables.types_are_odd ^ odd_signs[:, None]
    scores = 2 * ordered @ types.T - types.square().sum(1) - 2 * ordered[:, -1:] * wrong
    best, kind = scores.max(1)
    index = _index_of(torch.empty_like(x).scatter_(1, order, types[kind]))
    flipped = order[:, -1]
    flip = wrong.gather(1, kind[:, None])[:, 0]
    rows = (2 * ordered @ tables.padding_type - PADDED_NORM > best).nonzero()[:, 0]
    if len(rows):  # those that a vector beyond the ball might be nearer to
        far = _padding(size[rows], ~odd_signs[rows])
        rows, nearer = rows[far.score > best[rows]], far.score > best[rows]
        index[rows], best[rows] = far.place[nearer], far.score[nearer]
        flipped[rows], flip[rows] = far.flipped[nearer], ~odd_signs[rows]
    signs = negative.long()
    signs.scatter_add_(1, flipped[:, None], flip.long()[:, None])
    code = index | ((signs[:, :7] & 1) << tables.sign_bits).sum(1)
    return _Found(code, best - x.square().sum(1))


class _Far(NamedTuple):
    place: Tensor  # int64 [n], in the table
    score: Tensor
    flipped: Tensor  # int64 [n]: the coordinate that puts the parity right


def _padding(size: Tensor, wrong: Tensor) -> _Far:
    """The best of the vectors beyond the ball. They have an odd sum, so that an even number of
    minus signs (`wrong`) costs a flip of the smallest input that meets a 1/2."""
    table, halves = _tables(size.device).beyond, _tables(size.device).halves
    least, which = size[:, halves].min(2)
    scores = 2 * size @ table.T - PADDED_NORM - 2 * least * wrong[:, None]
    best, place = scores.max(1)
    flipped = halves[place].gather(1, which.gather(1, place[:, None]))[:, 0]
    return _Far(place + IN_BALL, best, flipped)


def _index_of(magnitudes: Tensor) -> Tensor:
    """Which vector of the ball; int64 [n]."""
    tables = _tables(magnitudes.device)
    return tables.numbered[_number(magnitudes, tables.places)]


def _number(magnitudes: Tensor, places: Tensor) -> Tensor:
    return ((magnitudes - 0.5).long() * places).sum(1)


@lru_cache(maxsize=2)
def _tables(device: torch.device) -> _Tables:
    beyond = e8p_magnitudes()[IN_BALL:]
    numbered = torch.zeros(3**GROUP, dtype=torch.int64)
    numbered[_number(e8p_magnitudes()[:IN_BALL], PLACES)] = torch.arange(IN_BALL)
    tables = _Tables(
        types=TYPES,
        types_are_odd=(TYPES.sum(1).int() & 1).bool(),
        padding_type=PADDING_TYPE,
        beyond=beyond,
        halves=(beyond == 0.5).nonzero()[:, 1].view(len(beyond), -1),
        numbered=numbered,
        places=PLACES,
        sign_bits=SIGN_BITS,
        ball=e8_ball(),
    )
    return _Tables(*(table.to(device) for table in tables))
