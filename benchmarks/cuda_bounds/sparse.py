"""Sparse deltas (deltadq) at alpha 16: tiles of 1 bit, rows of 4 bits."""

from benchmarks.cuda_bounds.work import Costs, Work, activations, kernel_code
from benchmarks.cuda_resources.sass import count
from tsugiki_kernels.cuda.binaries import Binaries

ALPHA = 16
PANEL_NONZEROS, STEP_NONZEROS = 512, 512  # of a warp, to one LDSM and to one turn of the loop


def tiles(outputs: int, inputs: int, tokens: int, variants: int, costs: Costs) -> list[Work]:
    """rows_per_mask 16, 1 bit: codes, columns and steps; x staged for every 256 outputs."""
    kept, each = inputs // ALPHA, tokens // variants
    words = -(-kept // 64)
    own = outputs // 16 * (words * 128 + kept * 2) + outputs // 16 * 2
    items = variants * -(-outputs // 256)
    staged = items * inputs / 256 * (1 if inputs <= 4096 else 2)  # windows, once for 128 outputs
    passes = -(-each // 8)
    nonzeros = variants * outputs * kept
    slots = passes * (nonzeros * costs["tiles"] / 32 + staged * costs["stage tiles"])
    nbytes = variants * own + activations(outputs, inputs, tokens)
    return [Work(nbytes, 2 * nonzeros * each, slots, items)]


def rows(outputs: int, inputs: int, tokens: int, variants: int, costs: Costs) -> list[Work]:
    """rows_per_mask 1, 4 bits, groups of 64: 8 bits for the place of each entry."""
    each = tokens // variants
    windows = -(-inputs // 4096)
    entries = 8 * windows * 32  # of a row, with those that only fill up
    own = outputs * entries * 12 // 8 + outputs // 16 * 2
    items = variants * -(-outputs // 128)
    fours, ones = -(-(each - each % 4) // 4) + (each % 4 > 1), int(each % 4 == 1)
    per_entry = fours * costs["rows of 4"] + ones * costs["rows of 1"]
    staged = (fours + ones) * items * inputs / 256 * costs["stage rows"]
    slots = variants * outputs * entries * per_entry / 32 + staged
    nbytes = variants * own + activations(outputs, inputs, tokens)
    operations = 2 * variants * outputs * inputs // ALPHA * each
    return [Work(nbytes, operations, slots, items)]


def read_costs(architecture: str, binaries: Binaries) -> Costs:
    """Instructions of a lane for each non-zero, of a warp for 256 columns of x; bfloat16.

    tiles: 1 bit, zero in the middle, for up to eight tokens. rows: the costliest width of codes,
    for one token and for up to four.
    """
    tile = kernel_code(binaries, architecture, "tsugiki_sparse_tiles_bf16")
    row = kernel_code(binaries, architecture, "tsugiki_sparse_rows_bf16")
    panels = [loop for loop in tile.loops() if count(loop, "LDSM") == 8]
    steps = [loop for loop in row.loops() if count(loop, "LDS") >= 16]
    fmas = sorted({count(loop, "FFMA") for loop in steps})
    one, four = ([loop for loop in steps if count(loop, "FFMA") == n] for n in (fmas[0], fmas[-1]))
    return {
        "tiles": min(map(len, panels)) * 32 / (8 * PANEL_NONZEROS),
        "rows of 1": max(map(len, one)) * 32 / STEP_NONZEROS,
        "rows of 4": max(map(len, four)) * 32 / STEP_NONZEROS,
        "stage tiles": len(tile.loop_with_most("STS")),
        "stage rows": len(row.loop_with_most("STS")),
    }
