"""What an entropy coder could save: of the files that there are, and of files that there could be.

    python -m benchmarks.frontier.entropy examples/variants/*.safetensors

First table: every section of a file at the entropy of its own symbols (an ideal static coder whose
tables cost nothing). Second: survivors of a Gaussian delta by kind of code. Noise is that of
|D|^2 for each kept share, gain matched: a seeded mask that keeps 1 of alpha with codes of noise q
makes alpha (1 + q) - 1; at H bits a code that is (1 + q) H for one bit per parameter, so
"noise x bits" compares codes at equal bytes. Small entries that a zero bin always loses are no
noise: they are lost systematically, which this column does not see.
"""

import argparse
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.frontier.quantizers import entropy
from tsugiki.codecs import artifact, packing
from tsugiki.codecs.artifact import Artifact
from tsugiki.codecs.base import Packed
from tsugiki.codecs.deltadq_layout import known_layout, unpack_codes
from tsugiki.codecs.quantize import symmetric_codes, symmetric_steps

SAMPLES = 200_000
THRESHOLDS = (0.3, 0.6, 1.0, 1.5, 2.0)  # of a zero bin, in standard deviations
BYTES = 256


@dataclass(frozen=True, slots=True)
class Saving:
    """One section of a file."""

    section: str
    nbytes: int
    coded: float  # bytes at the entropy of its symbols


def savings(found: Artifact) -> Iterator[Saving]:
    """Every section of a variant file."""
    names = {"codes": "deltadq.codes.u8", "bias": "deltadq.bias.u8"}
    coded = {
        names[part]: sum(bits) / 8
        for part, bits in (
            ("codes", [_codes(p) for p in _deltadq(found)]),
            ("bias", [_bias(p) for p in _deltadq(found)]),
        )
    }
    tensors = {
        "deltadq.step.f16": [p.tensors["step"] for p in _deltadq(found)],
        "dense.values.f16": [
            p.tensors["values"] for p in found.modules.values() if p.codec == "dense"
        ],
    }
    coded |= {name: _bytewise(parts) / 8 for name, parts in tensors.items()}
    for section in found.header.sections():
        yield Saving(section.name, section.nbytes, coded.get(section.name, section.nbytes))


def _deltadq(found: Artifact) -> list[Packed]:
    return [packed for packed in found.modules.values() if packed.codec == "deltadq"]


def _codes(packed: Packed) -> float:
    """Bits of the codes of a module, each tensor with a table of its own."""
    codes = unpack_codes(packed.tensors, known_layout(packed.shape, packed.options, packed.name))
    return codes.numel() * entropy(torch.bincount(codes.flatten().long()))


def _bias(packed: Packed) -> float:
    bits = packed.options["bias_bits"]
    if not bits:
        return 0.0
    codes = packing.unpack(packed.tensors["bias"][None], bits, packed.shape[0])[0]
    return codes.numel() * entropy(torch.bincount(codes.long()))


def _bytewise(parts: Iterable[Tensor]) -> float:
    """Bits of 16-bit values, low and high bytes each with one table for the file."""
    values = [part.flatten().view(torch.uint8).view(-1, 2) for part in parts if part.numel()]
    if not values:
        return 0.0
    both = torch.cat(values).long()
    return sum(len(both) * entropy(torch.bincount(both[:, i], minlength=BYTES)) for i in (0, 1))


@dataclass(frozen=True, slots=True)
class Code:
    """How survivors are coded, on samples of variance 1."""

    name: str
    stored_bits: float
    entropy: float
    noise: float  # q: |D^ - D|^2 / |D|^2, gain matched

    @property
    def at_equal_bytes(self) -> tuple[float, float]:
        """Noise times bits, stored and entropy coded."""
        return (1 + self.noise) * self.stored_bits, (1 + self.noise) * self.entropy


def kinds(values: Tensor) -> Iterator[Code]:
    """Uniform codes of 1 to 4 bits, and three levels with zero bins of several widths."""
    rows = values[None]
    for bits in (1, 2, 3, 4):
        step = symmetric_steps(rows, bits)
        codes = symmetric_codes(rows, step[:, None], bits)
        levels = codes.float() - ((1 << bits) - 1) / 2
        counts = torch.bincount(codes.flatten().long())
        yield _code(f"{bits} bit, stored", bits, counts, levels[0], values)
    for threshold in THRESHOLDS:
        levels = values.sign() * (values.abs() > threshold * values.square().mean().sqrt())
        counts = torch.stack([(levels == level).sum() for level in (-1, 0, 1)])
        yield _code(f"-c 0 +c, zero below {threshold}", 2, counts, levels, values)


def _code(name: str, bits: int, counts: Tensor, levels: Tensor, values: Tensor) -> Code:
    """Gain matched: D^ = f levels with <D^, D> = <D, D>."""
    inner, power = float((levels * values).sum()), float(values.square().sum())
    noise = power * float(levels.square().sum()) / inner**2 - 1
    return Code(name, bits, entropy(counts), noise)


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*", help="variant files")
    for path in parser.parse_args().files:
        print(f"\n{path.name}\n\n| section | bytes | at its entropy |\n|---|---|---|")
        rows = list(savings(artifact.read(path)))
        for row in rows:
            print(f"| {row.section} | {row.nbytes:,} | {math.ceil(row.coded):,} |")
        total, coded = sum(r.nbytes for r in rows), sum(r.coded for r in rows)
        print(f"| all | {total:,} | {math.ceil(coded):,} ({coded / total:.1%}) |")
    print("\n| survivors | bits | entropy | noise q | noise x bits, stored | entropy coded |")
    print("|---|---|---|---|---|---|")
    for code in kinds(torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0))):
        stored, coded = code.at_equal_bytes
        shown = f"{code.entropy:.3f} | {code.noise:.3f} | {stored:.2f} | {coded:.2f}"
        print(f"| {code.name} | {code.stored_bits:g} | {shown} |")


if __name__ == "__main__":
    main()
