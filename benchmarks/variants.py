"""Distinct variants for speed runs: fine-tunes compressed again and again with other mask seeds, or
many fine-tunes with one.

Given checkpoints the files are what `tsugiki compress deltadq --probe 0` makes of them, with their
calibration where FINE_TUNE.calibration.jsonl lies beside the directory, and have scores of their
own (benchmarks.quality tells). Without, the shipped files are decompressed first, so that nothing
but the checkout is needed: the speed is the same, the scores are not (a delta compressed twice).
Each fine-tune is opened and calibrated once, however many files are made of it.
"""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from tsugiki import __version__
from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import ModuleStats
from tsugiki.compress.activations import collect
from tsugiki.compress.budget import group_size_of
from tsugiki.compress.job import CompressJob, FullFineTune, OpenedBase, open_base, open_full
from tsugiki.compress.packer import Packer, pack_all
from tsugiki.compress.progress import Progress
from tsugiki.compress.survey import Survey, survey
from tsugiki.config import default_cache_dir

CODEC = CODECS["deltadq"]
Options = Mapping[str, int]  # alpha, bits, rows_per_mask


def tsugiki(*arguments: str) -> None:
    """Run the command line without its report; raises when it fails."""
    command = [sys.executable, "-m", "tsugiki", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def decompressed(base: Path, shipped: Path, folder: Path) -> list[Path]:
    """The checkpoints of the shipped variants, written into `folder` where they are missing."""
    found = []
    folder.mkdir(parents=True, exist_ok=True)
    for file in sorted(shipped.glob("*.safetensors")):
        out = folder / file.stem
        if not out.exists():
            tsugiki("decompress", str(file), "--base", str(base), "--out", str(out))
        found.append(out)
    return found


class Compressor:
    """Packs one fine-tune with any options and seed."""

    def __init__(self, base: Path, tuned: Path) -> None:
        self._base: OpenedBase = open_base(base)
        self._tuned = tuned
        self._source: FullFineTune = open_full(self._base, tuned)
        self._found: Survey = survey(self._source.pairs)
        self._stats = self._calibrated(base)

    def write(self, out: Path, options: Options, seed: int) -> None:
        """One file, whole or not at all."""
        asked = {**options, "seed": seed, "group_size": group_size_of(options["alpha"])}
        packer = Packer(CODEC, asked, self._base.layout, self._stats)
        stored = pack_all(packer, self._source.pairs, self._found.changes)
        spec = ArtifactSpec(
            codec=CODEC.name,
            base=self._base.reference(default_cache_dir()),
            text=self._source.text,
            created_by=f"tsugiki {__version__}",
            provenance={"fine_tune": self._tuned.name},
        )
        artifact.write(out, spec, {item.packed.name: item.packed for item in stored})

    def _calibrated(self, base: Path) -> Mapping[str, ModuleStats]:
        file = self._tuned.parent / f"{self._tuned.name}.calibration.jsonl"
        if not file.exists():
            return {}
        job = CompressJob(CODEC.name, base, self._tuned, Path("unused"), calibration=file)
        return collect(job, self._base, self._source.pairs, self._found, Progress()).stats


def distinct_variants(
    base: Path,
    fine_tunes: Sequence[Path],
    folder: Path,
    count: int,
    layouts: Mapping[str, Options],
    *,
    seed: int | None = None,
) -> dict[str, list[str]]:
    """`count` names of each layout, by its prefix; writes the files that `folder` lacks.

    The fine-tunes take turns; the i-th file has mask seed i, so that no two share masks. Of one
    `seed` they share them, as what `tsugiki compress` makes does.

    Raises:
        ValueError: one seed, and too few fine-tunes for so many distinct files.
    """
    if seed is not None and len(fine_tunes) < count:
        raise ValueError(
            f"{count} files of one seed need as many fine-tunes, not {len(fine_tunes)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    compressor: Callable[[Path], Compressor] = cache(lambda tuned: Compressor(base, tuned))
    made: dict[str, list[str]] = {}
    for prefix, options in layouts.items():
        for number in range(count):
            tuned = fine_tunes[number % len(fine_tunes)]
            made.setdefault(prefix, []).append(f"{prefix}-{number}-{tuned.name}")
            out = folder / f"{made[prefix][-1]}.safetensors"
            if not out.exists():
                compressor(tuned).write(out, options, seed=number if seed is None else seed)
    return made


def adapter_variants(base: Path, adapters: Sequence[Path], folder: Path) -> list[str]:
    """PEFT adapters as variant files, where `folder` lacks them; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    for adapter in adapters:
        out = folder / f"{adapter.name}.safetensors"
        if not out.exists():
            arguments = ["compress", "lora", "--base", str(base), "--tuned", str(adapter)]
            tsugiki(*arguments, "--out", str(out), "--probe", "0")
    return [adapter.name for adapter in adapters]
