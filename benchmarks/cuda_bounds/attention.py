"""Paged attention of decode: 32 heads of 128 dimensions over 8 KV heads, 16 bits."""

from benchmarks.cuda_bounds.work import Costs, Work, kernel_code
from benchmarks.cuda_resources.sass import aligned_path, count
from tsugiki_kernels.cuda.attention import SPLIT, STATE_PADDING
from tsugiki_kernels.cuda.binaries import Binaries

HEADS, KV_HEADS, DIM = 32, 8, 128
UNIT = 32  # positions that are softmaxed together
WARPS = 4


def decode(sequences: int, context: int, costs: Costs) -> list[Work]:
    """Two launches: a warp for each split of 512 positions and KV head, then a merge."""
    splits = -(-context // SPLIT)
    cache = 4 * sequences * context * KV_HEADS * DIM  # keys and values
    states = 4 * sequences * splits * HEADS * (DIM + STATE_PADDING)
    rows = 2 * sequences * HEADS * DIM
    units = sequences * KV_HEADS * context / UNIT
    merges = sequences * HEADS * (splits * costs["merge"] + costs["around merge"])
    return [
        Work(
            cache + rows + states,
            4 * sequences * HEADS * context * DIM,
            units * (costs["unit"] + DIM / 32 * costs["32 dimensions"]),
            -(-sequences * splits * KV_HEADS // WARPS),
        ),
        Work(states + rows, 2 * sequences * HEADS * splits * DIM, merges, sequences),
    ]


def read_costs(architecture: str, binaries: Binaries) -> Costs:
    """Warp instructions, bfloat16: 32 dimensions of the scores of a unit, all else of a unit; one
    state merged, all else of a row's head."""
    attend = kernel_code(binaries, architecture, f"tsugiki_attention_bf16_{DIM}")
    merge = kernel_code(binaries, architecture, "tsugiki_attention_finish_bf16")
    products = [loop for loop in attend.loops() if count(loop, "HMMA")]
    scores = min(products, key=lambda loop: count(loop, "HMMA"))
    state = max(merge.loops(), key=lambda loop: count(loop, "LDG", modifier="128"))
    return {
        "32 dimensions": len(scores),
        "unit": len(aligned_path(attend.around(scores))) - len(scores),
        "merge": len(state),
        "around merge": len(aligned_path(merge.instructions)) - len(state),
    }
