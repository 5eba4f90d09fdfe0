"""Low-rank deltas (LoRA) of rank 32, and sign deltas (BitDelta).

Beside the loops this counts what lies around them once for each item and warp, both ways of every
branch: at most so much.
"""

from benchmarks.cuda_bounds.work import Costs, Work, activations, kernel_code
from benchmarks.cuda_resources.sass import Instruction, Listing, aligned_path, count
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.low_rank import MAX_SLICES, SLICE_COLUMNS

RANK = 32
RANK_TILE, ROWS, CHUNK = 16, 8, 64  # ranks of an item, rows of a pass, rows of an item
WARPS = 4


def low_rank(outputs: int, inputs: int, tokens: int, variants: int, costs: Costs) -> list[Work]:
    """Two launches: A and B once, the sums of the slices of x written and read between them."""
    each = tokens // variants
    passes, chunks = -(-each // ROWS), -(-each // CHUNK)
    panels, slices = RANK // RANK_TILE, max(1, min(MAX_SLICES, inputs // SLICE_COLUMNS))
    sums = 4 * slices * RANK * tokens
    shrinks, expands = variants * chunks * panels * slices, variants * chunks * -(-outputs // 256)
    shrink = passes * (variants * panels * inputs / 32 * costs["shrink"])
    expand = passes * (variants * panels * outputs / 64 * costs["expand"])
    return [
        Work(
            variants * RANK * inputs * 2 + tokens * inputs * 2 + sums,
            2 * tokens * RANK * inputs,
            shrink + passes * shrinks * WARPS * costs["around shrink"],
            shrinks,
        ),
        Work(
            variants * RANK * outputs * 2 + tokens * outputs * 4 + sums,
            2 * tokens * RANK * outputs,
            expand + passes * expands * WARPS * costs["around expand"],
            expands,
        ),
    ]


def sign(outputs: int, inputs: int, tokens: int, variants: int, costs: Costs) -> list[Work]:
    """One bit for each weight and a scale for each output; 16 rows share a weight that was made."""
    each = tokens // variants
    wide, single = each // (2 * ROWS), each % (2 * ROWS)
    wide, narrow = wide + (single > ROWS), int(0 < single <= ROWS)
    items = variants * -(-each // CHUNK) * -(-outputs // 64)
    blocks = variants * (outputs / 64) * (inputs / 64)
    slots = blocks * (wide * costs["signs for 16"] + narrow * costs["signs for 8"])
    slots += items * WARPS * (wide + narrow) * costs["around signs"]
    nbytes = variants * outputs * (inputs // 8 + 2) + activations(outputs, inputs, tokens)
    return [Work(nbytes, 2 * tokens * outputs * inputs, slots, items)]


def read_costs(architecture: str, binaries: Binaries) -> Costs:
    """Warp instructions, bfloat16, aligned rows.

    shrink: for 16 ranks by 32 inputs; expand: for 64 outputs by 16 ranks; signs: for 64 outputs by
    64 inputs, for up to 8 and up to 16 tokens; around: of an item's warp, for each pass.
    """
    shrink, expand, signs = (
        kernel_code(binaries, architecture, f"tsugiki_{name}_bf16")
        for name in ("low_rank_shrink", "low_rank_expand", "sign_apply")
    )
    summed = shrink.loop_with_most("HMMA")
    single, wide = sorted((loop for loop in signs.loops() if count(loop, "HMMA")), key=len)
    return {
        "shrink": len(aligned_path(summed)) / (count(summed, "HMMA") / 2),
        "around shrink": _rest(shrink, summed),
        "expand": len(expand.loop_with_most("HMMA")),
        "around expand": _rest(expand, expand.loop_with_most("HMMA")),
        "signs for 8": len(aligned_path(single)) / (count(single, "HMMA") / 16),
        "signs for 16": len(aligned_path(wide)) / (count(wide, "HMMA") / 32),
        "around signs": _rest(signs, single, wide) / 2,  # the kernel holds both widths
    }


def _rest(kernel: Listing, *loops: tuple[Instruction, ...]) -> float:
    inside = sum(len(aligned_path(loop)) for loop in loops)
    return len(aligned_path(kernel.instructions)) - inside
