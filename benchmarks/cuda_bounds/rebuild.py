"""W = W_base + D, dense, 16 bits: W read and written, the delta read. For one variant."""

from benchmarks.cuda_bounds.products import RANK
from benchmarks.cuda_bounds.sparse import ALPHA
from benchmarks.cuda_bounds.work import Costs, Work, kernel_code
from benchmarks.cuda_resources.sass import Instruction, aligned_path, count
from tsugiki_kernels.cuda.binaries import Binaries


def sparse_tiles(outputs: int, inputs: int, costs: Costs) -> list[Work]:
    """Codes of 1 bit and columns; a block takes 16 rows."""
    kept = outputs * inputs // ALPHA
    slots = outputs * inputs / 256 * costs["copy 256"] + kept / 32 * costs["change a code"]
    nbytes = 4 * outputs * inputs + kept // 8 + kept // 8
    return [Work(nbytes, 2 * kept, slots, outputs // 16)]


def sparse_rows(outputs: int, inputs: int, costs: Costs) -> list[Work]:
    """Codes of 4 bits and places of 8; a block takes four rows."""
    entries = 8 * -(-inputs // 4096) * 32 * outputs
    slots = outputs * inputs / 256 * costs["copy 256"] + entries / 4 / 32 * costs["change a word"]
    nbytes = 4 * outputs * inputs + entries * 12 // 8
    return [Work(nbytes, 2 * entries, slots, outputs // 4)]


def low_rank(outputs: int, inputs: int, costs: Costs) -> list[Work]:
    """A and B from L2 after the first block; a warp takes 64 outputs by 32 columns."""
    squares = outputs / 64 * inputs / 32
    slots = squares * (RANK / 16 * costs["16 ranks"] + costs["around ranks"])
    nbytes = 4 * outputs * inputs + 2 * RANK * (outputs + inputs)
    items = -(-inputs // 128) * -(-outputs // 256)
    return [Work(nbytes, 2 * RANK * outputs * inputs, slots, items)]


def sign(outputs: int, inputs: int, costs: Costs) -> list[Work]:
    """Sign bits and scales; a warp takes a row."""
    slots = outputs * inputs / 256 * costs["signs of 256"]
    nbytes = 4 * outputs * inputs + outputs * (inputs // 8 + 2)
    return [Work(nbytes, 2 * outputs * inputs, slots, outputs // 8)]


def read_costs(architecture: str, binaries: Binaries) -> Costs:
    """Warp instructions, bfloat16, aligned rows: to copy 256 columns in and out, to change 32 codes
    of tiles or 32 words of rows, for 16 ranks of 64 outputs by 32 columns, for 256 signs."""
    tiles, rows, ranks, signs = (
        kernel_code(binaries, architecture, f"tsugiki_{name}_bf16")
        for name in (
            *("sparse_rebuild_tiles", "sparse_rebuild_rows"),
            *("low_rank_rebuild", "sign_rebuild"),
        )
    )
    loops = tiles.loops()
    changes = [loop for loop in loops if count(loop, "STS") and not count(loop, "LDG")]
    words = max(rows.loops(), key=lambda loop: count(loop, "LDG") * bool(count(loop, "LDS")))
    summed = ranks.loop_with_most("HMMA")
    return {
        "copy 256": _each(loops, "LDG") + _each(loops, "STG"),
        "change a code": max(len(loop) / count(loop, "STS") for loop in changes),
        "change a word": len(words),
        "16 ranks": len(summed),
        "around ranks": len(aligned_path(ranks.around(summed))) - len(summed),
        "signs of 256": _each(signs.loops(), "LDG"),
    }


def _each(loops: list[tuple[Instruction, ...]], base: str) -> float:
    """Instructions to one 16-byte access, of the loop that has most of them."""
    loop = max(loops, key=lambda loop: count(loop, base, modifier="128"))
    return len(aligned_path(loop)) / count(loop, base, modifier="128")
