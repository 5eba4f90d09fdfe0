"""Parts of linears in memory as a variant's extent holds them, for launches on the executor."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList, work_list
from tsugiki_kernels.deltas import Bias, CodedBias
from tsugiki_kernels.interface import Span

Apply = Callable[[Launcher, Tensor, Tensor, WorkList, Tensor, Tensor], None]

Rebuild = Callable[[Launcher, Tensor, ResidentPart, Tensor], None]


@dataclass
class Memory:
    """Keeps alive what addresses point at. Every tensor gets memory of its own."""

    device: torch.device
    held: list[object] = field(default_factory=list)

    def put(self, tensor: Tensor) -> int:
        """The address of a copy, aligned to 64 bytes and exactly as long."""
        own = torch.empty(tensor.shape, dtype=tensor.dtype, device=self.device).copy_(tensor)
        assert own.data_ptr() % 16 == 0
        self.held.append(own)
        return own.data_ptr()

    def put_record(self, record: ctypes.Structure) -> int:
        content = torch.frombuffer(bytearray(bytes(record)), dtype=torch.uint8)
        return self.put(content)

    def bias(self, bias: Bias | None) -> records.Bias:
        if bias is None:
            return records.Bias()
        if isinstance(bias, CodedBias):
            return records.Bias(self.put(bias.codes), bias.scale, bias.bits)
        return records.Bias(self.put(bias), 1.0, records.PLAIN_BITS)


def apply_parts(
    apply: Apply,
    launcher: Launcher,
    x: Tensor,
    out: Tensor,
    linears: Sequence[Sequence[ResidentPart]],
    spans: Sequence[Span],
    capacity: int | None = None,
) -> None:
    """One call over a work list of its own; the scratch memory is full of NaN before."""
    place = launcher.device
    work = work_list(linears, spans, capacity)
    scratch = torch.full((work.scratch,), float("nan"), device=place)
    there = out.to(place)
    apply(launcher, x.to(place), there, work, work.segments.to(place), scratch)
    out.copy_(there)


def rebuilt(rebuild: Rebuild, launcher: Launcher, base: Tensor, part: ResidentPart) -> Tensor:
    """The fused weight, zeros where the part has nothing."""
    out = torch.zeros_like(base, device=launcher.device)
    rebuild(launcher, base.to(launcher.device), part, out)
    return out.cpu()
