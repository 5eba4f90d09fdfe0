"""The order in which tensor cores consume a matrix, so that a lane's share is one 16-byte load.

Owns: the packing that src/tile_product.cuh reads. Knows nothing of what the matrix means.

A tile is 16 rows by 16 columns, the A operand of mma.m16n8k16: lane 4 g + t holds two rows by four
columns of it. Which rows and columns these are is ours to choose: here `tiles` tiles one upon the
other interleave, so that a lane's outputs are 2 * tiles neighbours, and `steps` tiles side by side
interleave, so that the columns it multiplies are 4 * steps neighbours.
"""

import torch
from torch import Tensor

TILE = 16
LANES = 32
LANE_VALUES = 8


def pack(matrix: Tensor, tiles: int, steps: int) -> Tensor:
    """[rows, columns] -> [row groups, column groups, steps, tiles, 32, 8], padded with zeros.

    Row 16 tiles G + 2 tiles g + 2 r + h and column 16 steps K + 4 steps t + 4 s + 2 p + j lie at
    [G, K, s, r, 4 g + t, 4 p + 2 h + j].
    """
    rows, columns = matrix.shape
    padding = (0, -columns % (TILE * steps), 0, -rows % (TILE * tiles))
    padded = torch.nn.functional.pad(matrix, padding)
    row_groups, column_groups = -(-rows // (TILE * tiles)), -(-columns // (TILE * steps))
    axes = padded.view(row_groups, 8, tiles, 2, column_groups, 4, steps, 2, 2)  # G g r h K t s p j
    ordered = axes.permute(0, 4, 6, 2, 1, 5, 7, 3, 8)
    return ordered.reshape(row_groups, column_groups, steps, tiles, LANES, LANE_VALUES)
