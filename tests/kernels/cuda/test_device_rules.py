"""The order of copies, launches and captures, on a device that does everything late."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from tests.kernels.attention_cases import PagedCase
from tests.kernels.cuda.lazy_device import POISON, BrokenRule, LazyDevice, LazyLauncher
from tsugiki_kernels.cuda.arena import Arena
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.launcher import Argument, Launcher
from tsugiki_kernels.cuda.pinned_ring import SLOTS, PinnedRing
from tsugiki_kernels.cuda.program import Program, RecordingLauncher, Steps
from tsugiki_kernels.cuda.region import Region
from tsugiki_kernels.cuda.upload import Uploader
from tsugiki_kernels.deltas import LowRankDelta, Placed
from tsugiki_kernels.device import CpuDevice
from tsugiki_kernels.extent import ALIGNMENT
from tsugiki_kernels.reference import ReferenceBackend


class Reader:
    """A launcher whose kernels remember what their first argument held when they ran."""

    def __init__(self) -> None:
        self.device = torch.device("cpu")
        self.multiprocessors, self.capability = 2, (8, 0)
        self.read: list[tuple[str, list[int]]] = []

    def launch(
        self,
        name: str,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Argument],
        shared_bytes: int = 0,
    ) -> None:
        content = args[0]
        assert isinstance(content, Tensor)
        self.read.append((name, content.tolist()))


OTHER = torch.zeros(1)


def asked(_: object) -> None:
    """Whatever came of it."""


def upload(uploader: Uploader, *values: int) -> Region:
    content = uploader.buffer(len(values))
    content.copy_(torch.tensor(values))
    region = uploader.target(len(values))
    uploader.upload(content, region.memory()[: len(values)])
    return region


def test_what_was_uploaded_is_there_and_the_buffer_may_be_filled_anew() -> None:
    device = LazyDevice()
    with Uploader(device, Arena(device, PinnedRing(device))) as uploader:
        first, second = upload(uploader, 1, 2), upload(uploader, 3, 4)
    assert first.memory()[:2].tolist() == [1, 2]
    assert second.memory()[:2].tolist() == [3, 4]


def test_memory_that_a_step_still_reads_is_not_written() -> None:
    device, reader = LazyDevice(), Reader()
    arena = Arena(device, PinnedRing(device))
    arena.reserve(ALIGNMENT)
    launcher = LazyLauncher(reader, device)
    with Uploader(device, arena) as uploader:
        old = upload(uploader, 1, 2)
        address = old.address
        read = device.view(address, 2, None)
        launcher.launch("kernel", (1,), (1,), (read,))
        del old  # evicted between two steps, while the first is still running
        new = upload(uploader, 3, 4)
    assert new.address == address
    assert reader.read == [("kernel", [1, 2])]


def test_the_device_shows_a_copy_that_nobody_waited_for_and_a_buffer_filled_too_early() -> None:
    device, reader = LazyDevice(), Reader()
    target, source = device.empty(2), device.pinned(2).fill_(1)
    device.copies.copy(target, source)
    LazyLauncher(reader, device).launch("kernel", (1,), (1,), (target,))
    device.steps.run()
    assert reader.read == [("kernel", [POISON, POISON])]
    source.fill_(2)
    device.copies.run()
    assert target.tolist() == [2, 2]


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda device: device.empty(1),
        lambda device: device.pinned(1),
        lambda device: device.steps.record(),
        lambda device: device.copies.copy(torch.zeros(1), torch.zeros(1)),
        lambda device: torch.empty(1),
        lambda device: OTHER.to(torch.float64),
        lambda device: OTHER.item(),
    ],
)
def test_the_device_refuses_in_a_capture_what_a_gpu_would(
    forbidden: Callable[[LazyDevice], object],
) -> None:
    device = LazyDevice()
    with pytest.raises(BrokenRule, match="while a graph is captured"):
        device.capture(lambda: asked(forbidden(device)))
    launcher = LazyLauncher(Reader(), device)
    with pytest.raises(BrokenRule, match="first time"):
        device.capture(lambda: launcher.launch("kernel", (1,), (1,), (OTHER,)))


def test_the_device_refuses_copies_from_memory_that_is_not_pinned() -> None:
    device = LazyDevice()
    with pytest.raises(BrokenRule, match="not pinned"):
        device.steps.copy(device.empty(1), torch.zeros(1, dtype=torch.uint8))
    device.steps.copy(device.empty(1), device.pinned(4)[1:2].fill_(3))
    assert len(device.steps.work) == 1


def test_a_slot_of_the_ring_is_filled_anew_only_when_its_copy_is_done() -> None:
    device = LazyDevice()
    ring, targets = PinnedRing(device), [device.empty(4) for _ in range(2 * SLOTS)]
    for value, target in enumerate(targets):
        ring.copy(target, ring.buffer(4).fill_(value))
    device.steps.run()
    assert [target.tolist() for target in targets] == [[v] * 4 for v in range(2 * SLOTS)]


def test_a_program_whose_memory_moved_runs_as_it_is_and_is_captured_anew() -> None:
    device, reader, version = LazyDevice(), Reader(), [0]
    recorded, x = Steps(), torch.zeros(1, dtype=torch.uint8)
    RecordingLauncher(LazyLauncher(reader, device), recorded).launch("one", (1,), (1,), (x,))
    recorded.watch(lambda: version[0])
    program = Program(recorded, device)
    captures = []
    for now in (0, 0, 0, 1, 1, 1):
        version[0] = now
        program.run()
        captures.append(device.captures)
    device.steps.run()
    assert captures == [0, 1, 1, 1, 2, 2]
    assert len(reader.read) == 6


def test_a_program_runs_once_as_it_is_and_is_captured_then() -> None:
    device, reader = LazyDevice(), Reader()
    recorded, x = Steps(), torch.zeros(1, dtype=torch.uint8)
    launcher = RecordingLauncher(LazyLauncher(reader, device), recorded)
    launcher.launch("first", (1,), (1,), (x,))
    launcher.launch("second", (1,), (1,), (x,))
    program = Program(recorded, device)
    assert reader.read == []
    for value in (1, 2, 3):
        x.fill_(value)
        program.run()
        device.steps.run()
    assert reader.read == [(name, [v]) for v in (1, 2, 3) for name in ("first", "second")]
    assert device.captures == 1


def test_a_program_that_must_wait_for_the_device_is_never_captured() -> None:
    device, recorded, ran = LazyDevice(), Steps(), []
    recorded.add(lambda: ran.append(1), capturable=False)
    program = Program(recorded, device)
    for _ in range(3):
        program.run()
    assert (len(ran), device.captures) == (3, 0)


@pytest.mark.compiler
def test_a_backend_keeps_the_rules(executor: Launcher) -> None:
    device = LazyDevice()
    backend = CudaBackend(LazyLauncher(executor, device), device)
    torch.manual_seed(0)
    deltas = [LowRankDelta(torch.randn(8, 64), torch.randn(40, 8), 0.5, None) for _ in range(2)]
    parts = [[Placed(0, delta)] for delta in deltas]
    x, out, spans = torch.randn(5, 64), torch.zeros(5, 40), [(0, 2), (3, 5)]
    staged = [backend.stage(linear) for linear in parts]
    program = backend.record(lambda kernels: kernels.apply(x, out, staged, spans))
    reference = ReferenceBackend()
    for _ in range(3):
        expected = torch.zeros_like(out)
        reference.apply(x, expected, [reference.stage(linear) for linear in parts], spans)
        program.run()
        assert not out.any()
        device.steps.run()
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        x.normal_()
        out.zero_()
    assert device.captures == 1


@pytest.mark.compiler
def test_attention_is_captured_without_taking_memory(executor: Launcher) -> None:
    device = LazyDevice()
    backend = CudaBackend(LazyLauncher(executor, device), device)
    case = PagedCase([40, 7], heads=2, kv_heads=1, dim=16, dtype=torch.float32)
    spans = [(38, 40), (6, 7)]
    cache, where = case.cache(CudaBackend(executor, CpuDevice())), case.batch(spans)
    q = torch.cat([case.q[s][start:stop] for s, (start, stop) in enumerate(spans)])
    out = torch.empty_like(q)
    program = backend.record(
        lambda kernels: kernels.paged_attention(q, cache, where, case.scale, None, out)
    )
    expected = case.attend(CudaBackend(executor, CpuDevice()), spans, None)
    for _ in range(3):
        out.fill_(float("nan"))
        program.run()
        device.steps.run()
        assert torch.equal(out, expected)
    assert device.captures == 1
