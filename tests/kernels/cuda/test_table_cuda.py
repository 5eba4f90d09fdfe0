"""Tables of deltas on a device that does everything late: one capture, whatever variants come."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.lazy_device import LazyDevice, LazyLauncher
from tests.kernels.cuda.resident import device_of
from tests.kernels.deltas import KINDS, sparse
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.kinds import form_of
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.pinned_ring import SLOTS
from tsugiki_kernels.cuda.work_list import CHUNK_ROWS, PART_WORDS, SEGMENT_WORDS, write_lists
from tsugiki_kernels.deltas import Delta, Placed
from tsugiki_kernels.device import CpuDevice, Device
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Program, Shapes, Span, Staged

SHAPES: Shapes = ((80, 48), (40, 40))
ROWS, VARIANTS = 9, 3
FILLINGS: list[list[Span]] = [[(0, 2), (2, 3), (5, 9)], [(4, 9)], [], [(1, 2), (7, 7)]]
WITH_KERNELS = [kind for kind, make in KINDS.items() if form_of(type(make((8, 64), 0)))]
Linears = list[list[Placed]]


def linears(delta: str, seed: int) -> Linears:
    """Two parts in the first linear, which is fused; one in the second."""
    make = KINDS[delta]
    first = [Placed(0, make((40, 48), seed)), Placed(40, make((33, 48), seed + 1))]
    return [first, [Placed(0, make((40, 40), seed + 2))]]


class Step:
    """A recorded step of two linears, and what `apply` makes of the same."""

    def __init__(self, launcher: Launcher, kind: type[Delta], device: Device) -> None:
        self.kernels = CudaBackend(launcher, device)
        self.device = device
        self.table = self.kernels.delta_table(kind, SHAPES, ROWS, VARIANTS)
        self.x = [torch.randn(ROWS, inputs, device=device.place) for _, inputs in SHAPES]
        self.out = [torch.zeros(ROWS, outputs, device=device.place) for outputs, _ in SHAPES]
        self.program: Program = self.kernels.record(self._ask)

    def _ask(self, kernels: object) -> None:
        assert isinstance(kernels, CudaBackend)
        for place, (x, out) in enumerate(zip(self.x, self.out, strict=True)):
            kernels.apply_table(x, out, self.table, place)

    def fill(self, variants: Sequence[Linears], spans: Sequence[Span]) -> None:
        staged = [self.kernels.stage_all(variant).linears for variant in variants]
        self.table.fill([self.kernels.collect(SHAPES, own)[0] for own in staged], spans)

    def expected(
        self, launcher: Launcher, runs: Sequence[tuple[Sequence[Linears], Sequence[Span]]]
    ) -> list[Tensor]:
        """What some runs add to zeros, one after the other."""
        kernels, outs = (
            CudaBackend(launcher, device_of(launcher)),
            list(map(torch.zeros_like, self.out)),
        )
        for variants, spans in runs:
            for place, (x, out) in enumerate(zip(self.x, outs, strict=True)):
                staged: list[Staged] = [kernels.stage(variant[place]) for variant in variants]
                kernels.apply(x, out, staged, spans)
        return outs


class LazyStep(Step):
    """On a lazy device."""

    def __init__(self, launcher: Launcher, kind: type[Delta]) -> None:
        self.lazy = LazyDevice()
        super().__init__(LazyLauncher(launcher, self.lazy), kind, self.lazy)

    def run(self) -> list[Tensor]:
        """What one run adds to zeros."""
        for out in self.out:
            out.zero_()
        self.program.run()
        assert not any(out.any() for out in self.out), "something did not wait for its turn"
        self.lazy.steps.run()
        return self.out


@pytest.mark.compiler
@pytest.mark.parametrize("kind", WITH_KERNELS)
def test_a_step_is_captured_once_and_adds_what_its_table_holds(
    executor: Launcher, kind: str
) -> None:
    variants = [linears(kind, 10 * seed) for seed in range(VARIANTS)]
    step = LazyStep(executor, type(variants[0][0][0].delta))
    for spans in FILLINGS:
        present = variants[: len(spans)]
        step.fill(present, spans)
        found = step.run()
        assert all(map(torch.equal, found, step.expected(executor, [(present, spans)])))
    assert step.lazy.captures == 1


@pytest.mark.compiler
def test_steps_that_are_asked_for_ahead_find_the_rows_of_their_own_run(executor: Launcher) -> None:
    variants = [linears("low rank", 10 * seed) for seed in range(VARIANTS)]
    step = LazyStep(executor, type(variants[0][0][0].delta))
    runs = [(variants[: len(spans)], spans) for spans in FILLINGS * SLOTS]
    for present, spans in runs:
        step.fill(present, spans)
        step.program.run()
    step.lazy.steps.run()
    assert all(map(torch.equal, step.out, step.expected(executor, runs)))


@pytest.mark.parametrize("launcher", [pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
def test_a_gpu_replays_what_its_table_holds(launcher: Launcher) -> None:
    variants = [linears("low rank", 10 * seed) for seed in range(VARIANTS)]
    step = Step(launcher, type(variants[0][0][0].delta), device_of(launcher))
    runs = [(variants[: len(spans)], spans) for spans in FILLINGS * SLOTS]
    for present, spans in runs:
        step.fill(present, spans)
        step.program.run()
    assert all(map(torch.equal, step.out, step.expected(launcher, runs)))


@pytest.mark.compiler
def test_a_table_that_a_step_filled_is_emptied_between_two_steps(executor: Launcher) -> None:
    kernels = CudaBackend(executor, CpuDevice())
    (deltas,) = kernels.collect(SHAPES, kernels.stage_all(linears("sign", 1)).linears)
    table = kernels.delta_table(deltas.kind, SHAPES, ROWS, 1)
    x, out = torch.randn(ROWS, 48), torch.zeros(ROWS, 80)
    with torch.inference_mode():
        table.fill([deltas], [(0, 4)])
        kernels.apply_table(x, out, table, 0)
    assert out[:4].any()
    table.fill((), ())
    kernels.apply_table(x, out.zero_(), table, 0)
    assert not out.any()


@pytest.mark.compiler
def test_what_a_table_holds_already_is_not_copied_again(executor: Launcher) -> None:
    variant = linears("sign", 1)
    step = LazyStep(executor, type(variant[0][0].delta))
    staged = step.kernels.stage_all(variant).linears
    (deltas,) = step.kernels.collect(SHAPES, staged)
    step.table.fill([deltas], [(0, 4)])
    asked = len(step.lazy.steps.work)
    step.table.fill([deltas], [(0, 4)])
    assert len(step.lazy.steps.work) == asked
    step.table.fill([deltas], [(0, 5)])
    assert len(step.lazy.steps.work) == asked + 1


@pytest.mark.compiler
def test_forms_and_parts_that_a_table_meets_later_are_captured_with_the_others(
    executor: Launcher,
) -> None:
    tiles = [[Placed(0, sparse((80, 48), 1, rows_per_mask=16))], [Placed(0, sparse((40, 40), 2))]]
    rows = [
        [Placed(0, sparse((40, 48), 3)), Placed(40, sparse((40, 48), 4))],
        [Placed(0, sparse((40, 40), 5, rows_per_mask=16))],
    ]
    step = LazyStep(executor, type(tiles[0][0].delta))
    for variants, captures in (
        *(([tiles], captures) for captures in (0, 1, 1)),
        *(([rows, tiles], captures) for captures in (1, 2, 2)),
        ([tiles], 2),
    ):
        spans = [(3 * i, 3 * i + 2) for i in range(len(variants))]
        step.fill(variants, spans)
        found = step.run()
        assert all(map(torch.equal, found, step.expected(executor, [(variants, spans)])))
        assert step.lazy.captures == captures


@pytest.mark.compiler
def test_deltas_of_another_model_are_refused(executor: Launcher) -> None:
    kernels = CudaBackend(executor, CpuDevice())
    variant = linears("sign", 1)
    staged = kernels.stage_all(variant).linears
    with pytest.raises(BadArgument, match=r"does not fit linear 0, \(72, 48\)"):
        kernels.collect(((72, 48), SHAPES[1]), staged)
    (deltas,) = kernels.collect(SHAPES, staged)
    table = kernels.delta_table(deltas.kind, ((80, 48), (40, 40), (8, 8)), ROWS, 1)
    with pytest.raises(BadArgument, match="linears of another model"):
        table.fill([deltas], [(0, 1)])


def test_a_list_names_the_part_and_the_rows_of_every_item() -> None:
    """Walked as src/work_list.cuh does."""
    generator = torch.Generator().manual_seed(1)
    parts = torch.randint(0, 4, (5, 3, 2, PART_WORDS), generator=generator)
    parts[..., 0] = torch.arange(1, 31).view(5, 3, 2)
    parts[1, 2] = 0  # a variant that leaves a linear alone
    spans = [(0, 3), (10, 210), (3, 3), (4, 5), (300, 300 + CHUNK_ROWS)]
    lists = torch.full((3, 12, SEGMENT_WORDS), -1)
    passes = write_lists(lists, parts, spans)
    for linear, found in enumerate(lists.tolist()):
        for turn in (0, 1):
            expected = {
                (record, start): tiles[turn] * -(-(stop - start) // CHUNK_ROWS)
                for (start, stop), variant in zip(spans, parts[:, linear].tolist(), strict=True)
                for record, *tiles, _ in variant
            }
            items = [segment_of(found, turn, item) for item in range(found[-1][3 + turn])]
            walked = {key: items.count(key) for key in items}
            assert walked == {key: count for key, count in expected.items() if count}
            assert passes[linear, turn] == bool(items)


def segment_of(entries: list[list[int]], turn: int, item: int) -> tuple[int, int]:
    """Record and first row of the last entry that begins at the item or before."""
    begun = [entry for entry in entries[:-1] if entry[3 + turn] <= item]
    return begun[-1][0], begun[-1][1]


def test_the_sums_of_a_list_have_room_of_their_own() -> None:
    parts = torch.tensor([[[[7, 1, 1, 10], [8, 1, 1, 4]]], [[[9, 1, 1, 3], [0, 0, 0, 0]]]])
    lists = torch.full((1, 6, SEGMENT_WORDS), -1)
    write_lists(lists, parts, [(0, 2), (5, 6)])
    begins = {record: scratch for record, *_, scratch in lists[0, :3].tolist()}
    assert begins == {7: 0, 9: 20, 8: 23}
    assert lists[0, -1, -1] == 31
