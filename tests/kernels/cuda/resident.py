"""Parts of linears in memory as a variant's extent holds them, for launches on the executor."""

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from tests.kernels.deltas import close, expected64
from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.work_list import ResidentPart, WorkList, work_list
from tsugiki_kernels.deltas import Bias, CodedBias, Placed
from tsugiki_kernels.interface import Span

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of one rounding
DTYPES = pytest.mark.parametrize(
    "dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch.")
)
ApplyVariants = Callable[
    [Launcher, Tensor, Tensor, Sequence[Sequence[Placed]], Sequence[Span]], None
]
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


def assert_slices_need_no_alignment(
    apply: ApplyVariants, launcher: Launcher, parts: Sequence[Placed]
) -> None:
    """x and out that begin anywhere in wider rows; the parts are one of 32 outputs, 48 inputs."""
    wide_x, wide_out = torch.randn(5, 101).bfloat16(), torch.zeros(5, 81).bfloat16()
    x, out = wide_x[:, 7:55], wide_out[:, 11:43]
    expected = expected64(x, out, [parts], [(0, 5)])
    apply(launcher, x, out, [parts], [(0, 5)])
    assert close(out, expected, TOLERANCE[torch.bfloat16])
    assert not wide_out[:, :11].any()
    assert not wide_out[:, 43:].any()
