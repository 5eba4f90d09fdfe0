"""What do 1, 10 and 100 fine-tunes of a sketched base weigh in memory, beside its one index map?

The variants are made here: random changes of all codebooks, stored at 8 bits each (what they say
does not matter to what they weigh). They are loaded as the server's loader does; printed are bytes
of the files, of the tensors packed in them, resident bytes of the variants' own, what they share
beside the base, and by how much the process really grew (see benchmarks/resident_bytes.py).

    python -m benchmarks.sketch_resident --base SKETCHED
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.resident_bytes import COUNTS, HEADINGS, MEGABYTE, Bench
from benchmarks.results import save
from tsugiki.codecs import artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Packed
from tsugiki.codecs.coverage import REPORT_KEY, coverage, declared
from tsugiki.codecs.masks import MaskCache, drawn_by
from tsugiki.codecs.sketch import CODEC, pack
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.config import default_cache_dir
from tsugiki.model.device import CPU
from tsugiki.model.loader import load_base
from tsugiki.model.sketched import INDEX, SketchSettings
from tsugiki.variants.arena import Arena
from tsugiki_kernels.codebooks import IndexMap
from tsugiki_kernels.select import backend

VALUE_BITS = 8


def variant(base: OpenedBase, form: SketchSettings, seed: int) -> dict[str, Packed]:
    """All codebooks changed a little, at random."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in filter(base.checkpoint.is_compressed, base.checkpoint.names()):
        shape = base.checkpoint.matrix_shape(name)
        index = IndexMap(shape, form.bits, form.groups, torch.empty(0, dtype=torch.uint8))
        change = 0.01 * torch.randn(index.codebook_shape, generator=generator)
        found[name] = pack(change, index, VALUE_BITS, name)
    return found


def write_variants(base: OpenedBase, form: SketchSettings, folder: Path) -> Iterator[Path]:
    """As many files as are weighed at most."""
    reference = base.reference(default_cache_dir())
    for seed in range(max(COUNTS)):
        modules, path = variant(base, form, seed), folder / f"{seed:03}.safetensors"
        report = {REPORT_KEY: declared(coverage(modules))}
        spec = ArtifactSpec(CODEC.name, reference, CODEC.role, report=report)
        artifact.write(path, spec, modules)
        yield path


def map_bytes(base: OpenedBase) -> int:
    """Of the indices, once for all."""
    names = filter(base.checkpoint.is_compressed, base.checkpoint.names())
    return sum(base.checkpoint.reader(name)(INDEX).nbytes for name in names)


def main() -> None:
    """Print the table, save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True, help="of compress-base sketch")
    arguments = parser.parse_args()
    opened = open_base(arguments.base)
    form = opened.checkpoint.form
    if not isinstance(form, SketchSettings):
        raise SystemExit(f"--base {arguments.base} is not sketched")
    kernels = backend("auto", cache_dir=default_cache_dir() / "kernels")
    base = load_base(arguments.base, CPU, "bfloat16", kernels, default_cache_dir())
    bench = Bench(base, Arena(), MaskCache(drawn_by(kernels)))
    what = f"{form.bits} bits, {form.groups} codebooks a row"
    print(f"{what}: index map {map_bytes(opened) / MEGABYTE:.2f} MB, once")
    print(f"{'megabytes':<24}" + "".join(f"{heading:>14}" for heading in HEADINGS))
    rows = []
    with TemporaryDirectory() as folder:
        files = list(write_variants(opened, form, Path(folder)))
        for _ in range(3):
            bench.load(files[0])  # what the first load imports and allocates for good
        for weight in bench.weigh(files, COUNTS):
            print(weight.line(f"{weight.variants} variants"), flush=True)
            rows.append({"what": what, "index_map": map_bytes(opened), **asdict(weight)})
    print(save("sketch_resident", rows))


if __name__ == "__main__":
    main()
