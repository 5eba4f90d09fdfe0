"""Parts of linears in memory as a variant's extent holds them, for launches on the executor."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from tests.kernels.deltas import close, expected64
from tsugiki_kernels.cuda import records
from tsugiki_kernels.cuda.kinds import Form
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.work_list import ResidentPart, work_list
from tsugiki_kernels.deltas import Bias, CodebookDelta, CodedBias, Delta, Placed, SparseDelta
from tsugiki_kernels.device import CpuDevice, CudaDevice, Device
from tsugiki_kernels.interface import Span

TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of one rounding
DTYPES = pytest.mark.parametrize(
    "dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def device_of(launcher: Launcher) -> Device:
    """Whose memory its kernels read: a GPU's, or the CPU's that plays one."""
    place = launcher.device
    return CpuDevice() if place.type == "cpu" else CudaDevice(place)


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

    def bias(self, bias: Bias | None) -> records.Bias:
        if bias is None:
            return records.Bias()
        if isinstance(bias, CodedBias):
            return records.Bias(self.put(bias.codes), bias.scale, bias.bits)
        return records.Bias(self.put(bias), 1.0, records.PLAIN_BITS)

    def delta(self, delta: Delta) -> Delta:
        """Its kept columns or its map on the device, where other variants would share them."""
        if isinstance(delta, SparseDelta):
            return replace(delta, columns=self._held(delta.columns))
        if isinstance(delta, CodebookDelta):
            index = replace(delta.index, codes=self._held(delta.index.codes))
            return replace(delta, index=index)
        return delta

    def _held(self, tensor: Tensor) -> Tensor:
        there = tensor.to(self.device)
        self.held.append(there)
        return there

    def part(self, form: Form, placed: Placed) -> ResidentPart:
        """What staging makes of a part, but for the extent."""
        delta, offset = self.delta(placed.delta), placed.offset
        packing = form.pack(delta)
        addresses = [self.put(tensor) for tensor in packing.tensors]
        record = packing.record(offset, addresses, self.bias(delta.bias))
        content = torch.frombuffer(bytearray(bytes(record)), dtype=torch.uint8)
        return form.resident(delta, offset, self.put(content))


def apply(
    form: Form,
    launcher: Launcher,
    x: Tensor,
    out: Tensor,
    variants: Sequence[Sequence[Placed]],
    spans: Sequence[Span],
    capacity: int | None = None,
) -> None:
    """One call over a work list of its own; the scratch memory is full of NaN before."""
    place, memory = launcher.device, Memory(launcher.device)
    linears = [[memory.part(form, placed) for placed in parts] for parts in variants]
    work = work_list(linears, spans, capacity)
    scratch = torch.full((work.scratch,), float("nan"), device=place)
    there = out.to(place)
    form.apply(launcher, x.to(place), there, work, work.segments.to(place), scratch)
    out.copy_(there)


def rebuilt(form: Form, launcher: Launcher, base: Tensor, placed: Placed) -> Tensor:
    """The fused weight, zeros where the part has nothing."""
    memory = Memory(launcher.device)
    out = torch.zeros_like(base, device=launcher.device)
    form.rebuild(launcher, base.to(launcher.device), memory.part(form, placed), out)
    return out.cpu()


def assert_slices_need_no_alignment(
    form: Form, launcher: Launcher, parts: Sequence[Placed]
) -> None:
    """x and out that begin anywhere in wider rows; the parts are one of 32 outputs, 48 inputs."""
    wide_x, wide_out = torch.randn(5, 101).bfloat16(), torch.zeros(5, 81).bfloat16()
    x, out = wide_x[:, 7:55], wide_out[:, 11:43]
    expected = expected64(x, out, [parts], [(0, 5)])
    apply(form, launcher, x, out, [parts], [(0, 5)])
    assert close(out, expected, TOLERANCE[torch.bfloat16])
    assert not wide_out[:, :11].any()
    assert not wide_out[:, 43:].any()
