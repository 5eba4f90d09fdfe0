"""Draws a token from a row of probabilities, given one uniform number.

Owns: inverse transform sampling in the order of the vocabulary, and what top_k, top_p and min_p
leave to draw from. Rows never look at each other, so a draw is the same in any batch. Does not know
logits, temperatures or seeds.
"""

import numpy as np
from numpy.typing import NDArray

Probabilities = NDArray[np.float32]

BLOCK = 256  # probabilities that are summed as one in the first look at an unfiltered row
# Tokens less likely than this share of the likeliest are looked at only when the others do not
# decide the matter: sorting a whole vocabulary is slow.
SHARES = (0.3, 0.03, 1e-3, 1e-5, 0.0)


def draw_from_all(rows: Probabilities, points: NDArray[np.float64]) -> NDArray[np.int64]:
    """One token per row of probabilities ([n, vocab]); points: [n], in [0, 1)."""
    padding = -rows.shape[1] % BLOCK
    if padding:
        rows = np.pad(rows, ((0, 0), (0, padding)))
    blocks = rows.reshape(len(rows), -1, BLOCK)
    sums = blocks.sum(axis=2, dtype=np.float64)
    block, target = _find(sums, points * sums.sum(axis=1))
    inside = blocks[np.arange(len(rows)), block].astype(np.float64)
    place, _ = _find(inside, target)
    return block * BLOCK + place


def _find(
    weights: NDArray[np.float64], targets: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """In each row the first place whose running sum exceeds the target, and the target's rest
    there. Never a place of weight 0, whatever rounding did to the target."""
    running = weights.cumsum(axis=1)
    targets = np.minimum(targets, running[:, -1] * (1 - 2.0**-32))
    places = (running <= targets[:, None]).sum(axis=1)
    rows = np.arange(len(weights))
    return places, targets - (running[rows, places] - weights[rows, places])


def draw_filtered(
    row: Probabilities, point: float, *, top_k: int, top_p: float, min_p: float
) -> int:
    """One token of one row, among those that the filters leave."""
    tokens = kept_tokens(row, top_k=top_k, top_p=top_p, min_p=min_p)
    running = row[tokens].cumsum(dtype=np.float64)
    return int(tokens[np.searchsorted(running, point * running[-1], side="right")])


def kept_tokens(row: Probabilities, *, top_k: int, top_p: float, min_p: float) -> NDArray[np.int64]:
    """The tokens, ascending, that top_k (0: all), then top_p (the smallest set with so much of what
    is left), then min_p (so much of the likeliest) leave. Equally likely ones stay or go together.
    """
    largest = row.max()
    count = min(top_k, len(row)) if top_k > 0 else len(row)
    for share in SHARES:
        tokens = np.flatnonzero(row >= share * largest)
        descending = np.sort(row[tokens])[::-1]
        running = descending.cumsum(dtype=np.float64)
        has_count = count <= len(tokens)
        has_mass = count == len(row) and running[-1] >= top_p
        if has_count or has_mass or (top_p == 1.0 and min_p >= share):
            break
    count = min(count, len(tokens))
    mass = running[count - 1] if has_count else 1.0
    last = min(int(np.searchsorted(running, top_p * mass)), count - 1)
    kept: NDArray[np.int64] = tokens[row[tokens] >= max(descending[last], min_p * largest)]
    return kept
