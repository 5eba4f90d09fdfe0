"""What bounds a decode step of a 7B model with V variants on a GPU? Computed, nothing is measured.

One token for each of V sequences, every one of another variant, on the shapes of Llama-2-7B: the
base's linears and lm_head are read once, each variant's codes once, and its kept columns once for
all variants of a seed. Time: these bytes over the memory's bandwidth (data sheets), or the products
over the tensor cores' rate, whichever takes longer. Neither attention nor launches are in it.

    python -m benchmarks.roofline
"""

from collections.abc import Iterator
from dataclasses import dataclass

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 32, 4096, 11008, 32000
LINEARS = LAYERS * (4 * HIDDEN**2 + 3 * HIDDEN * INTERMEDIATE)  # weights
HEAD = VOCABULARY * HIDDEN
VARIANTS = (1, 8, 32, 128, 512)


@dataclass(frozen=True)
class Gpu:
    """Bytes and multiply-adds a second, from its data sheet (dense, 16-bit)."""

    name: str
    bandwidth: float
    rate: float


@dataclass(frozen=True)
class Delta:
    """deltadq, masks shared by tiles of 16 rows: one of `alpha` columns kept, codes of `bits`."""

    bits: int
    alpha: int

    @property
    def codes(self) -> float:
        """Bytes a variant reads of its own a step."""
        return LINEARS / self.alpha * self.bits / 8

    @property
    def columns(self) -> float:
        """Bytes of 16-bit column numbers, which the variants of one seed share."""
        return LINEARS / self.alpha / 16 * 2


GPUS = (Gpu("H100", 3.35e12, 494e12), Gpu("A100", 2.04e12, 156e12), Gpu("4090", 1.01e12, 82e12))
DELTAS = (Delta(1, 16), Delta(4, 9))


def rows(delta: Delta, seeds_apart: bool) -> Iterator[str]:
    """One line of the table for each number of variants."""
    for count in VARIANTS:
        base = 2.0 * (LINEARS + HEAD)
        changes = count * delta.codes + (count if seeds_apart else 1) * delta.columns
        products = count * (LINEARS + HEAD + LINEARS / delta.alpha)
        bounds = (max((base + changes) / g.bandwidth, products / g.rate) * 1e3 for g in GPUS)
        times = " | ".join(f"{bound:.2f}" for bound in bounds)
        kind = f"{delta.bits} bit, 1 of {delta.alpha}, {'own seeds' if seeds_apart else 'one seed'}"
        parts = f"{base / 1e9:.1f} | {changes / 1e9:.2f} | {changes / base:.3f}"
        yield f"| {count} x {kind} | {parts} | {times} |"


def main() -> None:
    """Print the table."""
    print(
        f"| variants | base GB | variants GB | share | {' ms | '.join(g.name for g in GPUS)} ms |"
    )
    print("|---|---|---|---|---|---|---|")
    for delta in DELTAS:
        for seeds_apart in (False, True):
            print("\n".join(rows(delta, seeds_apart)))


if __name__ == "__main__":
    main()
