"""What bounds the CUDA kernels: bytes by formula, instruction slots from machine code.

ESTIMATES: no line of these tables was measured; benchmarks.kernels_cuda measures. See work.py for
what a bound counts and what it leaves out.

    python -m benchmarks.cuda_bounds
"""

from collections.abc import Iterator, Sequence

from benchmarks.cuda_bounds import attention, products, rebuild, sparse
from benchmarks.cuda_bounds.work import GPUS, Costs, Work, bound
from tsugiki.config import default_cache_dir
from tsugiki_kernels.cuda.binaries import Binaries
from tsugiki_kernels.cuda.cupy_launcher import Nvrtc

SHAPES = ((4096, 4096), (4096, 11008))  # outputs, inputs
BATCHES = ((1, 1), (8, 1), (8, 8), (32, 1), (32, 8), (32, 32))  # tokens, variants
CONTEXTS = ((1, 1024), (1, 8192), (8, 1024), (8, 8192), (32, 1024), (32, 8192))
APPLIED = {
    "deltadq tiles, 1 bit": sparse.tiles,
    "deltadq rows, 4 bits": sparse.rows,
    f"lora, rank {products.RANK}": products.low_rank,
    "bitdelta": products.sign,
}
REBUILT = {
    "deltadq tiles, 1 bit": rebuild.sparse_tiles,
    "deltadq rows, 4 bits": rebuild.sparse_rows,
    f"lora, rank {products.RANK}": rebuild.low_rank,
    "bitdelta": rebuild.sign,
}
ByGpu = dict[str, Costs]  # by architecture


def read_costs(architecture: str, binaries: Binaries) -> Costs:
    """Of all kernels in the tables."""
    costs: Costs = {}
    for module in (sparse, products, rebuild, attention):
        costs |= module.read_costs(architecture, binaries)
    return costs


def instructions(costs: ByGpu) -> Iterator[str]:
    """What the estimates take from machine code."""
    yield table_head("instructions", *(gpu.architecture for gpu in GPUS))
    for name in costs[GPUS[0].architecture]:
        cells = " | ".join(f"{costs[gpu.architecture][name]:.2f}" for gpu in GPUS)
        yield f"| {name} | {cells} |"


def applied(costs: ByGpu) -> Iterator[str]:
    """Deltas added to the rows of a step."""
    yield bounds_head("kernel", "shape", "tokens / variants")
    for name, kernel in APPLIED.items():
        for shape in SHAPES:
            for tokens, variants in BATCHES:
                launches = [kernel(*shape, tokens, variants, own) for own in of_gpus(costs)]
                yield line((name, _by(shape), f"{tokens} / {variants}"), launches)


def rebuilt(costs: ByGpu) -> Iterator[str]:
    """Dense weights of one variant."""
    yield bounds_head("kernel", "shape")
    for name, kernel in REBUILT.items():
        for shape in SHAPES:
            yield line((name, _by(shape)), [kernel(*shape, own) for own in of_gpus(costs)])


def attended(costs: ByGpu) -> Iterator[str]:
    """Attention of sequences that decode."""
    yield bounds_head("sequences", "context")
    for sequences, context in CONTEXTS:
        launches = [attention.decode(sequences, context, own) for own in of_gpus(costs)]
        yield line((str(sequences), str(context)), launches)


def of_gpus(costs: ByGpu) -> Iterator[Costs]:
    """In the order of `GPUS`."""
    return (costs[gpu.architecture] for gpu in GPUS)


def line(labels: Sequence[str], launches: Sequence[Sequence[Work]]) -> str:
    """One line of a table of bounds. launches: for each of `GPUS`; bytes are those of the first."""
    megabytes = sum(work.nbytes for work in launches[0]) / 1e6
    operations = sum(work.operations for work in launches[0]) / 1e6
    cells = (*labels, f"{megabytes:.2f}", f"{operations:.1f}", *map(bound, launches, GPUS))
    return f"| {' | '.join(cells)} |"


def bounds_head(*labels: str) -> str:
    """The first two lines of a table of bounds."""
    return table_head(*labels, "MB", "MFLOP", *(f"{gpu.name} us" for gpu in GPUS))


def table_head(*labels: str) -> str:
    """The first two lines of a table."""
    return f"\n| {' | '.join(labels)} |\n|{'---|' * len(labels)}"


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[0]}x{shape[1]}"


def main() -> None:
    """Compile the sources, read their loops, print."""
    binaries = Binaries(default_cache_dir() / "kernels", Nvrtc)
    costs = {gpu.architecture: read_costs(gpu.architecture, binaries) for gpu in GPUS}
    print("Estimates, not measured.")
    for table in (instructions, applied, rebuilt, attended):
        print("\n".join(table(costs)))


if __name__ == "__main__":
    main()
