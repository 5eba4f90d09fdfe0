"""Variants that move between two steps answer to the bit as before, whatever was recorded."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.kernels.cuda.lazy_device import LazyDevice, LazyLauncher
from tests.kernels.deltas import KINDS, sparse
from tsugiki_kernels.cuda.backend import CudaBackend
from tsugiki_kernels.cuda.kinds import form_of
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.deltas import Delta, Placed, SparseDelta
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Program, Shapes, StagedLinears
from tsugiki_kernels.operands import ColumnDraw

SHAPES: Shapes = ((80, 48), (40, 40))
ROWS = 9
ROOM = 2**18
WITH_KERNELS = [kind for kind, make in KINDS.items() if form_of(type(make((8, 64), 0)))]


class Scene:
    """A variant between one that goes and one that comes, in a buffer that holds two of them."""

    def __init__(self, launcher: Launcher, make: str) -> None:
        torch.manual_seed(0)
        self.lazy = LazyDevice()
        self.kernels = CudaBackend(LazyLauncher(launcher, self.lazy), self.lazy)
        self.room = self.kernels.reserve(ROOM)
        self.other: object = self.filler(ROOM // 4)
        self.masks = [self.drawn(shape) for shape in SHAPES]
        self.lazy.steps.run()  # staging looks at them
        self.norm = torch.randn(40)
        parts = [[Placed(0, self.delta(make, place))] for place in range(len(SHAPES))]
        self.staged: StagedLinears = self.kernels.stage_all(parts, [self.norm])
        self.newcomer: StagedLinears | None = None

    def filler(self, nbytes: int) -> StagedLinears:
        weight = torch.zeros(nbytes, dtype=torch.uint8)
        return self.kernels.stage_all([], [weight])

    def drawn(self, shape: tuple[int, int]) -> Tensor:
        tiles = -(-shape[0] // 16)
        return self.kernels.draw_columns(ColumnDraw(7, 1, tiles, shape[1], 16, 5, 5))

    def delta(self, make: str, place: int) -> Delta:
        delta: Delta = KINDS[make](SHAPES[place], place)
        shares = isinstance(delta, SparseDelta) and delta.rows_per_mask == 16
        if not shares:
            return delta
        columns = self.masks[place]
        own = sparse(SHAPES[place], place, kept=columns.shape[1])
        return replace(own, columns=columns)

    def move(self) -> None:
        """What lies before the variant goes, and something comes that fits into no gap."""
        self.other = None
        before = self.room.stats()
        self.newcomer = self.filler(before.largest_free_bytes + 64)
        assert self.room.stats().beside_bytes > 0
        self.room.arrange()
        after = self.room.stats()
        assert (after.beside_bytes, after.moves >= 2) == (0, True)

    def run(self, program: Program, out: Sequence[Tensor]) -> list[Tensor]:
        """What a run adds to zeros."""
        for tensor in out:
            tensor.zero_()
        program.run()
        self.lazy.steps.run()
        return [tensor.clone() for tensor in out]


@pytest.mark.compiler
@pytest.mark.parametrize("kind", WITH_KERNELS)
def test_a_captured_step_survives_a_move_and_its_bits_stay(executor: Launcher, kind: str) -> None:
    scene = Scene(executor, kind)
    (deltas,) = scene.kernels.collect(SHAPES, scene.staged.linears)
    table = scene.kernels.delta_table(deltas.kind, SHAPES, ROWS, 2)
    xs = [torch.randn(ROWS, inputs) for _, inputs in SHAPES]
    outs = [torch.zeros(ROWS, outputs) for outputs, _ in SHAPES]

    def ask(kernels: object) -> None:
        assert isinstance(kernels, CudaBackend)
        for place, (x, out) in enumerate(zip(xs, outs, strict=True)):
            kernels.apply_table(x, out, table, place)

    program = scene.kernels.record(ask)
    table.fill([deltas], [(1, 8)])
    before = [scene.run(program, outs) for _ in range(2)][1]
    assert all(out.any() for out in before)
    scene.move()
    after = [scene.run(program, outs) for _ in range(2)]  # filled with what it held: it looks anew
    assert all(all(map(torch.equal, found, before)) for found in after)
    assert scene.lazy.captures == 1


@pytest.mark.compiler
@pytest.mark.parametrize("kind", [*WITH_KERNELS, "dense"])
def test_a_weight_that_is_rebuilt_in_a_recorded_step_is_found_where_it_went(
    executor: Launcher, kind: str
) -> None:
    scene = Scene(executor, kind)
    base, out = torch.randn(SHAPES[0]), torch.zeros(SHAPES[0])
    staged = scene.staged.linears[0]
    program = scene.kernels.record(lambda kernels: kernels.reconstruct(base, staged, out))
    before = scene.run(program, [out])
    scene.move()
    scene.lazy.steps.run()  # the formulas' torch does not wait for its turn
    after = [scene.run(program, [out]) for _ in range(3)]
    assert not torch.equal(before[0], base)
    assert all(torch.equal(found[0], before[0]) for found in after)


@pytest.mark.compiler
def test_what_a_variant_has_beside_its_linears_follows(executor: Launcher) -> None:
    scene = Scene(executor, "low rank")
    (norm,) = scene.staged.others
    address = norm.data_ptr()
    scene.move()
    scene.lazy.steps.run()
    assert norm.data_ptr() != address
    assert torch.equal(norm, scene.norm)
    fresh = Scene(executor, "low rank")
    fresh.lazy.steps.run()
    assert torch.equal(scene.masks[0].int(), fresh.masks[0].int())


@pytest.mark.compiler
def test_an_operation_recorded_with_a_variants_addresses_refuses_to_run_when_it_has_moved(
    executor: Launcher,
) -> None:
    scene = Scene(executor, "sign")
    x, out = torch.randn(2, 48), torch.zeros(2, 80)
    staged = scene.staged.linears[:1]
    program = scene.kernels.record(lambda kernels: kernels.apply(x, out, staged, [(0, 2)]))
    assert scene.run(program, [out])[0].any()
    scene.move()
    with pytest.raises(BadArgument, match="moved since this was recorded"):
        program.run()
