"""Some hundred real variants of one base, made cheaply from a few fine-tunes of it.

Each is an interpolation: the change is the sum of a * (fine-tune - base) over the fine-tunes, with
coefficients of its own from below 0 to above 1, packed as `tsugiki compress deltadq` packs by
default (1 bit, 1 of 16 kept, tiles of 16 rows), without the calibrated bias. They are real in that
all linears and norms change, each differs from all others, and they behave differently; nobody
trained them, and their scores on the tasks are not known.
Most share the mask seed 0, as files of the default recipe do; a share has seeds of its own, which
cost a server mask memory that is not shared.

The fine-tunes are checkpoints in --fine-tunes; without it the shipped files are decompressed first,
so that the checkout is enough. Resumable: a file that exists is not made again.

    python -m benchmarks.churn.variants --fine-tunes ft/arithmetic ft/banking77 ft/pirate
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import torch

from benchmarks.variants import decompressed
from tsugiki import __version__
from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec, BaseRef
from tsugiki.compress.job import OpenedBase, open_base, open_full
from tsugiki.compress.packer import Packer, Stored
from tsugiki.compress.report import Deviation
from tsugiki.compress.survey import Change, Pair, Pairs, survey
from tsugiki.config import default_cache_dir
from tsugiki.model.demo_base import resolve_base

CODEC = CODECS["deltadq"]
CARRIED = ("linear", "vector", "bias")  # what the fine-tunes of this benchmark may change
AT_ONCE = 20  # variants packed in one walk over the tensors
LEADING, OTHERS = (0.5, 1.6), (-0.5, 1.2)  # coefficients of one fine-tune, and of the others


@dataclass(frozen=True, slots=True)
class Mixture:
    """What one variant is made of."""

    name: str
    shares: tuple[tuple[int, float], ...]  # (fine-tune, coefficient)
    seed: int  # of the masks


def mixtures(count: int, sources: int, fresh_seeds: float) -> list[Mixture]:
    """`count` different mixtures of the fine-tunes; the first ones do not depend on `count`.

    `fresh_seeds`: the share with a mask seed of its own, the others have 0.
    """
    found = []
    for number in range(count):
        draw = random.Random(number)
        order = draw.sample(range(sources), sources)
        ranges = [LEADING] + [OTHERS] * (sources - 1)
        shares = [(i, round(draw.uniform(*span), 3)) for i, span in zip(order, ranges, strict=True)]
        seed = 1 + number if draw.random() < fresh_seeds else 0
        found.append(Mixture(f"v{number:03}", tuple(shares), seed))
    return found


class Source:
    """The change that one fine-tune makes, tensor by tensor."""

    def __init__(self, base: OpenedBase, directory: Path) -> None:
        self.name = directory.name
        self._pairs: Pairs = open_full(base, directory).pairs
        self.changes: dict[str, Change] = {c.name: c for c in survey(self._pairs).changes}
        other = {c.kind for c in self.changes.values()} - set(CARRIED)
        if other:
            raise ValueError(f"{directory} changes {other}; only {CARRIED} can be mixed here")

    def read(self, name: str) -> Pair | None:
        """Both sides of a change, float32; None where this fine-tune changes nothing."""
        change = self.changes.get(name)
        return None if change is None else self._pairs.read(change)


def mixed(pairs: Sequence[Pair | None], shares: Sequence[tuple[int, float]]) -> Pair | None:
    """The base and base + sum of coefficient * difference, of one tensor."""
    present = [(pair, share) for i, share in shares if (pair := pairs[i]) is not None]
    if not present:
        return None
    base = present[0][0].base
    change = sum((s * (pair.tuned - pair.base) for pair, s in present), torch.zeros(()))
    return Pair(present[0][0].change, base, base + change)


def pack(
    base: OpenedBase, sources: Sequence[Source], wanted: Sequence[Mixture]
) -> dict[str, list[Stored]]:
    """The modules of several variants by name, each tensor of each fine-tune read once."""
    packers = {m.name: Packer(CODEC, {"seed": m.seed}, base.layout) for m in wanted}
    stored: dict[str, list[Stored]] = {m.name: [] for m in wanted}
    for name in sorted(set().union(*(source.changes for source in sources))):
        pairs = [source.read(name) for source in sources]
        for mixture in wanted:
            pair = mixed(pairs, mixture.shares)
            if pair is not None:
                stored[mixture.name] += packers[mixture.name].pack(pair)
    return stored


def described(mixture: Mixture, sources: Sequence[Source]) -> str:
    """For the provenance of the file: "1.2 * banking77 + 0.4 * pirate"."""
    return " + ".join(f"{share} * {sources[i].name}" for i, share in mixture.shares)


def write(out: Path, base: OpenedBase, named: BaseRef, origin: str, stored: list[Stored]) -> None:
    """One variant file, whole or not at all; `named`: how it names its base."""
    coded = [item.deviation for item in stored if item.packed.codec == CODEC.name]
    total = reduce(Deviation.__add__, coded, Deviation())
    spec = ArtifactSpec(
        codec=CODEC.name,
        base=named,
        created_by=f"tsugiki {__version__}",
        provenance={"fine_tune": origin},
        report={
            "changed_parameters": sum(item.parameters for item in stored),
            "model_parameters": base.parameters,
            "relative_error": round(total.relative_error, 4),
            "gain": round(total.gain, 4),
        },
    )
    artifact.write(out, spec, {item.packed.name: item.packed for item in stored})


def make(
    base: OpenedBase,
    directories: Sequence[Path],
    folder: Path,
    wanted: Sequence[Mixture],
    cache_dir: Path | None = None,
) -> Iterator[Path]:
    """Write the mixtures that `folder` does not hold yet; yields each file when it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [m for m in wanted if not (folder / f"{m.name}.safetensors").exists()]
    if not missing:
        return
    sources = [Source(base, directory) for directory in directories]
    named = base.reference(cache_dir)
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        packed = pack(base, sources, some)
        for mixture in some:
            out = folder / f"{mixture.name}.safetensors"
            write(out, base, named, described(mixture, sources), packed[mixture.name])
            yield out


def default_folder() -> Path:
    """Where the files are kept between runs, outside the checkout."""
    return default_cache_dir() / "churn"


def main() -> int:
    """Entry point: makes what is missing and prints each file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default="demo")
    parser.add_argument("--count", type=int, default=244)
    parser.add_argument("--fine-tunes", type=Path, nargs="+", help="uncompressed checkpoints")
    parser.add_argument("--shipped", type=Path, default=Path("examples/variants"))
    parser.add_argument("--folder", type=Path, default=default_folder())
    parser.add_argument("--fresh-seeds", type=float, default=0.1, help="share with own mask seeds")
    args = parser.parse_args()
    path = resolve_base(args.base, default_cache_dir())
    checkpoints = args.fine_tunes or decompressed(path, args.shipped, args.folder / "fine-tunes")
    wanted = mixtures(args.count, len(checkpoints), args.fresh_seeds)
    folder = args.folder / "variants"
    for file in make(open_base(path), checkpoints, folder, wanted, default_cache_dir()):
        print(file, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
