"""Distinct variants for speed runs, made from the shipped fine-tunes alone.

Each shipped file is decompressed once and compressed again with other mask seeds and in the layout
asked for: real deltas, as many files as wanted, nothing but the checkout needed. Scores of such
files are not those of the shipped ones (a delta compressed twice); only their speed is used.
"""

import subprocess
import sys
from pathlib import Path


def tsugiki(*arguments: str) -> None:
    """Run the command line; raises when it fails."""
    subprocess.run([sys.executable, "-m", "tsugiki", *arguments], check=True)


def distinct_variants(
    base: Path, shipped: Path, folder: Path, count: int, options: list[str], prefix: str
) -> list[str]:
    """Write `count` deltadq files with `options` into folder/variants; returns their names."""
    target = folder / "variants"
    target.mkdir(parents=True, exist_ok=True)
    (folder / "tuned").mkdir(exist_ok=True)
    sources = sorted(shipped.glob("*.safetensors"))
    names = []
    for number in range(count):
        source = sources[number % len(sources)]
        tuned = folder / "tuned" / source.stem
        if not tuned.exists():
            tsugiki("decompress", str(source), "--base", str(base), "--out", str(tuned))
        name = f"{prefix}-{number}-{source.stem}"
        out = target / f"{name}.safetensors"
        if not out.exists():
            arguments = ["compress", "deltadq", "--base", str(base), "--tuned", str(tuned)]
            tsugiki(*arguments, "--out", str(out), "--seed", str(number), *options)
        names.append(name)
    return names
