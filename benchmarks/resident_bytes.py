"""What do 1, 10 and 100 variants weigh in memory, beside as many full copies of the base?

Loads them as the server's loader does and prints, for each number: bytes of the files, of the
tensors packed in them, resident bytes of the variants' own, resident bytes that they share (masks,
once for each seed), and by how much the process really grew (anonymous memory as the kernel counts
it, Python's own objects included). Full copies are computed, not held: parameters * 2 bytes. First
the shipped files, then those of `python -m benchmarks.churn.variants`: real interpolations, some
with a mask seed of their own.

    python -m benchmarks.resident_bytes [--folder FOLDER]
"""

import argparse
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.churn.memory import memory_of
from benchmarks.churn.variants import default_folder
from benchmarks.results import save
from tsugiki.codecs.artifact import Header, read_header
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.masks import MaskCache, drawn_by
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.loader import BaseModel, load_base
from tsugiki.variants.arena import Arena
from tsugiki.variants.loader import read_packed
from tsugiki_kernels.select import backend

COUNTS = (1, 10, 100)
BF16_BYTES = 2
MEGABYTE = 10**6
HEADINGS = ("files", "packed", "own", "own/packed", "shared", "process grew", "full copies")


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes of a number of variants."""

    variants: int
    files: int
    packed: int  # tensors of the files
    own: int
    shared: int
    grown: int  # measured
    full_copies: int  # computed

    def line(self, title: str) -> str:
        """One line of the table, in megabytes."""
        cells = (self.files, self.packed, self.own, None, self.shared, self.grown, self.full_copies)
        shown = (
            f"{self.own / self.packed:.3f}" if c is None else f"{c / MEGABYTE:.2f}" for c in cells
        )
        return f"{title:<24}" + "".join(f"{cell:>14}" for cell in shown)


@dataclass(frozen=True, slots=True)
class Bench:
    """A base that variants are loaded onto."""

    base: BaseModel
    arena: Arena
    masks: MaskCache

    def load(self, path: Path) -> tuple[Header, ResidentVariant]:
        """What the server's loader does for one file, the packed content let go."""
        base, kernels = self.base, self.base.decoder.kernels
        packed, _ = read_packed(path, read_header(path).digest, self.arena.allocate)
        place = Destination(
            base.layout,
            base.vector,
            base.dtype,
            kernels,
            self.masks,
            self.arena.allocate,
            index_of=base.index_of,
            factors_of=base.factors_of,
        )
        variant = stage_variant(packed.content, place)
        return packed.content.header, variant

    def weigh(self, files: Sequence[Path], counts: Sequence[int]) -> Iterator[Weight]:
        """One after the other, all held; the weight whenever a count is reached."""
        before, full = anonymous(), self.parameters() * BF16_BYTES
        held: list[ResidentVariant] = []
        file_bytes = packed = 0
        for file in files:
            header, variant = self.load(file)
            held.append(variant)
            file_bytes += header.file_bytes
            packed += sum(blob.nbytes for blob in header.tensors)
            if len(held) in counts:
                shared = {part: part.nbytes for one in held for part in one.shared}
                own, grown = sum(one.nbytes for one in held), anonymous() - before
                count = len(held)
                yield Weight(
                    count, file_bytes, packed, own, sum(shared.values()), grown, count * full
                )

    def parameters(self) -> int:
        """Of the base, tied ones once."""
        layout = self.base.layout
        names = [n for n in layout.linears if not (layout.tied and n == "lm_head.weight")]
        matrices = [layout.embedding_shape, *(layout.linears[n].shape for n in names)]
        vectors = sum(layout.vectors.values()) + sum(
            layout.linears[weight].shape[0] for weight in layout.biases.values()
        )
        return sum(rows * columns for rows, columns in matrices) + vectors


def anonymous() -> int:
    """Bytes of anonymous memory of this process."""
    gc.collect()
    return memory_of(os.getpid()).anonymous


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--base", default="demo")
    parser.add_argument("--shipped", type=Path, default=Path("examples/variants"))
    parser.add_argument("--folder", type=Path, default=default_folder() / "variants")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS)
    args = parser.parse_args()
    files = sorted(args.folder.glob("*.safetensors"))
    if len(files) < max(args.counts):
        parser.error(
            f"{args.folder} holds {len(files)} of {max(args.counts)} files: make them with "
            "'python -m benchmarks.churn.variants'"
        )
    kernels = backend("auto", cache_dir=default_cache_dir() / "kernels")
    path = resolve_base(args.base, default_cache_dir())
    base = load_base(path, torch.device("cpu"), "bfloat16", kernels, default_cache_dir())
    bench = Bench(base, Arena(), MaskCache(drawn_by(kernels)))
    for _ in range(3):
        bench.load(files[0])  # what the first load imports and allocates for good
    print(f"{'megabytes':<24}" + "".join(f"{heading:>14}" for heading in HEADINGS))
    rows = []
    for file in sorted(args.shipped.glob("*.safetensors")):
        rows += [(file.stem, weight) for weight in bench.weigh([file], [1])]
        print(rows[-1][1].line(file.stem), flush=True)
    for weight in bench.weigh(files, args.counts):
        rows.append((f"{weight.variants} variants", weight))
        print(weight.line(rows[-1][0]), flush=True)
    print(save("resident_bytes", [{"what": title, **asdict(w)} for title, w in rows]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
