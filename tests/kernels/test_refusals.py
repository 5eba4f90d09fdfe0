"""What the kernels refuse, and how they say it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.kernels.deltas import dense, low_rank, sign, sparse
from tsugiki_kernels.check_deltas import check_delta
from tsugiki_kernels.cpu.backend import CpuBackend
from tsugiki_kernels.deltas import CodedBias, Delta, Placed
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

SHAPE = (32, 48)
BAD_DELTAS: dict[str, Callable[[], Delta]] = {
    "bits: .*found 3": lambda: replace(sparse(SHAPE, 0), bits=3),
    "rows_per_mask.*found 0": lambda: replace(sparse(SHAPE, 0), rows_per_mask=0),
    "columns: expected dtype uint16": lambda: replace(
        sparse(SHAPE, 0), columns=torch.zeros(2, 9, dtype=torch.int32)
    ),
    "columns: expected indices below 48, found 48": lambda: replace(
        sparse(SHAPE, 0), columns=torch.full((2, 9), 48).to(torch.uint16)
    ),
    "codes: expected shape": lambda: replace(
        sparse(SHAPE, 0), codes=torch.zeros(2, 3, dtype=torch.uint8)
    ),
    "step: expected shape": lambda: replace(sparse(SHAPE, 0), step=torch.ones(31).half()),
    "step: expected dtype float16": lambda: replace(sparse(SHAPE, 0), step=torch.ones(32)),
    "shape: .*65536": lambda: replace(sparse(SHAPE, 0), shape=(32, 65537)),
    "bias: expected dtype float32": lambda: replace(sparse(SHAPE, 0), bias=torch.ones(32).half()),
    "bias: expected shape": lambda: replace(low_rank(SHAPE, 0), bias=torch.ones(31)),
    "bias: expected codes of 2 .. 8": lambda: replace(
        sparse(SHAPE, 0), bias=CodedBias(torch.zeros(4, dtype=torch.uint8), 1, 1.0)
    ),
    r"bias: expected shape \(24,\)": lambda: replace(
        sparse(SHAPE, 0), bias=CodedBias(torch.zeros(23, dtype=torch.uint8), 6, 1.0)
    ),
    "b: expected shape": lambda: replace(low_rank(SHAPE, 0), b=torch.ones(32, 4)),
    "a: expected a contiguous": lambda: replace(low_rank(SHAPE, 0), a=torch.ones(48, 5).T),
    "signs: expected shape": lambda: replace(
        sign(SHAPE, 0), signs=torch.zeros(32, 5, dtype=torch.uint8)
    ),
    "scale: expected dtype": lambda: replace(sign(SHAPE, 0), scale=torch.ones(32).double()),
    "weight: expected shape": lambda: replace(dense(SHAPE, 0), weight=torch.ones(32, 47)),
}


@pytest.mark.parametrize("words", BAD_DELTAS)
def test_stage_refuses_what_breaks_the_contract(kernels: KernelBackend, words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        kernels.stage([Placed(0, BAD_DELTAS[words]())])


def test_columns_on_a_device_are_trusted_in_range_and_checked_in_shape() -> None:
    """Tensors without memory stand for a device's: whoever read them would raise."""
    drawn = sparse(SHAPE, 0)
    check_delta(replace(drawn, columns=drawn.columns.to("meta")))
    with pytest.raises(BadArgument, match="columns: expected shape"):
        check_delta(replace(drawn, columns=drawn.columns[:1].to("meta")))


def test_stage_refuses_parts_that_do_not_belong_together(kernels: KernelBackend) -> None:
    with pytest.raises(BadArgument, match="of one kind"):
        kernels.stage([])
    with pytest.raises(BadArgument, match=r"of one kind.*SignDelta.*SparseDelta"):
        kernels.stage([Placed(0, sparse(SHAPE, 0)), Placed(32, sign(SHAPE, 0))])
    with pytest.raises(BadArgument, match="one input width"):
        kernels.stage([Placed(0, sign(SHAPE, 0)), Placed(32, sign((32, 40), 0))])
    with pytest.raises(BadArgument, match="offset 31 overlaps"):
        kernels.stage([Placed(31, sign(SHAPE, 0)), Placed(0, sign(SHAPE, 0))])


def apply(kernels: KernelBackend, **change: Any) -> None:
    arguments = {
        "x": torch.zeros(4, 48),
        "out": torch.zeros(4, 32),
        "staged": [kernels.stage([Placed(0, sparse(SHAPE, 0))])],
        "spans": [(0, 4)],
    }
    kernels.apply(**(arguments | change))  # type: ignore[arg-type]


def test_apply_refuses_wrong_dtypes_shapes_and_spans(kernels: KernelBackend) -> None:
    with pytest.raises(BadArgument, match="x: expected float32"):
        apply(kernels, x=torch.zeros(4, 48).double())
    with pytest.raises(BadArgument, match=r"out: expected torch\.float32"):
        apply(kernels, out=torch.zeros(4, 32).half())
    with pytest.raises(BadArgument, match="x, out"):
        apply(kernels, out=torch.zeros(5, 32))
    with pytest.raises(BadArgument, match="one per staged"):
        apply(kernels, spans=[(0, 2), (2, 4)])
    for span in ((-1, 2), (3, 2), (0, 5)):
        with pytest.raises(BadArgument, match="not within the 4 rows"):
            apply(kernels, spans=[span])


@pytest.mark.compiler
def test_cpu_apply_refuses_strides_and_sizes_that_it_would_read_past(
    cpu_backend: CpuBackend,
) -> None:
    with pytest.raises(BadArgument, match="x: expected unit stride"):
        apply(cpu_backend, x=torch.zeros(48, 4).T)
    with pytest.raises(BadArgument, match="out: expected unit stride"):
        apply(cpu_backend, out=torch.zeros(32, 4).T)
    with pytest.raises(BadArgument, match="48 inputs"):
        apply(cpu_backend, x=torch.zeros(4, 47))
    with pytest.raises(BadArgument, match="outputs up to 32"):
        apply(cpu_backend, out=torch.zeros(4, 31))
    both = [cpu_backend.stage([Placed(0, d)]) for d in (sparse(SHAPE, 0), sign(SHAPE, 0))]
    with pytest.raises(BadArgument, match="one kind of delta"):
        apply(cpu_backend, staged=both, spans=[(0, 2), (2, 4)])


@pytest.mark.compiler
def test_cpu_reconstruct_refuses_what_does_not_fit(cpu_backend: CpuBackend) -> None:
    staged = cpu_backend.stage([Placed(0, sparse(SHAPE, 0))])
    base = torch.zeros(SHAPE)
    with pytest.raises(BadArgument, match="base: expected"):
        cpu_backend.reconstruct(torch.zeros(31, 48), staged, torch.zeros(31, 48))
    with pytest.raises(BadArgument, match="base: expected float32"):
        cpu_backend.reconstruct(base.double(), staged, base.double())
    with pytest.raises(BadArgument, match="out: expected"):
        cpu_backend.reconstruct(base, staged, base.half())
    with pytest.raises(BadArgument, match="out: may not be base"):
        cpu_backend.reconstruct(base, staged, base)
    with pytest.raises(BadArgument, match="contiguous"):
        cpu_backend.reconstruct(base, staged, torch.zeros(48, 32).T)


@pytest.mark.compiler
def test_a_value_staged_by_another_backend_is_refused(cpu_backend: CpuBackend) -> None:
    reference = ReferenceBackend()
    for one, other in ((cpu_backend, reference), (reference, cpu_backend)):
        with pytest.raises(BadArgument, match="made by another backend"):
            apply(one, staged=[other.stage([Placed(0, sparse(SHAPE, 0))])])
