"""What a compression achieved, in bytes that are really on the disk.

Owns: the three ratios, errors and gains per tensor, their text and JSON.
Does not know: how anything was compressed.

Size law: the sections of a file sum to the file. The honest ratio compares bfloat16 bytes of
exactly those parameters that the file changes with all bytes of the file, header included.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs.metadata import Header

BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class ModuleReport:
    """One stored tensor: what the stored change D' is to the true change D."""

    name: str
    codec: str
    parameters: int  # that the file changes
    nbytes: int
    relative_error: float  # |D' - D| / |D|, Frobenius
    gain: float  # <D', D> / <D, D>; 1 when the change keeps its strength


@dataclass(frozen=True, slots=True)
class Report:
    """The end of `tsugiki compress`."""

    path: str
    digest: str
    codec: str
    options: Mapping[str, Any]  # shared by all modules of the codec
    file_bytes: int
    sections: Mapping[str, int]  # sum to file_bytes
    changed_parameters: int
    model_parameters: int
    honest_ratio: float
    whole_model_ratio: float
    paper_ratio: float | None  # as papers count: value bits only; None where no paper defines one
    relative_error: float  # over all linears
    gain: float
    seconds: float
    modules: tuple[ModuleReport, ...]
    notes: tuple[str, ...] = ()

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Deviation:
    """Inner products from which errors and gains of tensors, and of sums of them, follow."""

    power: float = 0.0  # <D, D>
    overlap: float = 0.0  # <D', D>
    error: float = 0.0  # |D' - D|^2

    @classmethod
    def between(cls, change: Tensor, stored: Tensor) -> "Deviation":
        """Of a true change and its stored form, both float32 of one shape."""
        difference = stored - change
        return cls(_dot(change, change), _dot(stored, change), _dot(difference, difference))

    def __add__(self, other: "Deviation") -> "Deviation":
        return Deviation(
            self.power + other.power, self.overlap + other.overlap, self.error + other.error
        )

    @property
    def relative_error(self) -> float:
        """|D' - D| / |D|."""
        return math.sqrt(self.error / self.power) if self.power else 0.0

    @property
    def gain(self) -> float:
        """<D', D> / <D, D>."""
        return self.overlap / self.power if self.power else 1.0


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


def ratio(parameters: int, file_bytes: int) -> float:
    """bfloat16 bytes of so many parameters over the bytes of the file."""
    return parameters * BF16_BYTES / file_bytes


def sections_of(header: Header) -> dict[str, int]:
    """Name -> bytes; they sum to the file."""
    return {section.name: section.nbytes for section in header.sections()}


def shown_options(options: Mapping[str, Any]) -> str:
    """Options on one line: "alpha=16 bits=1"."""
    return " ".join(f"{key}={value}" for key, value in sorted(options.items()))


def human_bytes(count: int) -> str:
    """1,234,567 -> "1.23 MB" (powers of ten, like file listings)."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.2f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"


def render(report: Report, *, layers: int = 10) -> str:
    """The report for people; the `layers` worst linears, all of them in the JSON."""
    lines = [
        f"{report.path}  {report.digest}",
        f"  {report.codec}  {shown_options(report.options)}",
        f"  {report.file_bytes:,} bytes ({human_bytes(report.file_bytes)})",
        *(f"    {name:<36} {size:>12,}" for name, size in report.sections.items()),
        *ratio_lines(report.honest_ratio, report.whole_model_ratio, report.paper_ratio),
        f"  all linears: relative error {report.relative_error:.3f}, gain {report.gain:.3f}",
    ]
    worst = sorted(report.modules, key=lambda m: -m.relative_error)[:layers]
    lines += _table(worst)
    if len(report.modules) > layers:
        lines.append(f"    ... the {layers} worst of {len(report.modules)}; all with --report FILE")
    lines += [f"  note: {note}" for note in report.notes]
    lines.append(f"  {report.seconds:.1f} seconds")
    return "\n".join(lines)


def ratio_lines(honest: float, whole: float | None, paper: float | None) -> list[str]:
    """The ratios, each with what it counts; without those that the file does not tell."""
    explained = (
        ("honest ratio", honest, "bf16 bytes of changed tensors / bytes of the file"),
        ("whole-model ratio", whole, "bf16 bytes of the model / bytes of the file"),
        ("paper-style ratio", paper, "value bits only, as the paper counts; not a size on disk"),
    )
    return [
        f"  {name:<17}  {value:8.1f}x  {text}"
        for name, value, text in explained
        if value is not None
    ]


def _table(modules: Sequence[ModuleReport]) -> list[str]:
    head = f"    {'tensor':<46} {'codec':<9} {'bytes':>9} {'rel. error':>10} {'gain':>6}"
    return [head] + [
        f"    {m.name:<46} {m.codec:<9} {m.nbytes:>9,} {m.relative_error:>10.3f} {m.gain:>6.3f}"
        for m in modules
    ]


def paper_ratio(codec: str, options: Mapping[str, Any]) -> float | None:
    """DeltaDQ's own count, alpha * 16 / (bits - log2 parts): positions, parts and scales for free.

    None for other codecs, and where the count has no meaning (as many parts as codes).
    """
    if codec != "deltadq" or not {"alpha", "bits", "parts"} <= set(options):
        return None
    residual = options["bits"] - math.log2(options["parts"])
    return float(options["alpha"] * 16 / residual) if residual > 0 else None


def file_paper_ratio(header: Header) -> float | None:
    """`paper_ratio` of all modules that the file's own codec carries, together."""
    own = [module for module in header.modules.values() if module.codec == header.codec]
    ratios = [paper_ratio(module.codec, module.options) for module in own]
    sizes = [math.prod(module.shape) for module in own]
    if not own or None in ratios:
        return None
    return sum(sizes) / sum(n / r for n, r in zip(sizes, ratios, strict=True) if r is not None)
