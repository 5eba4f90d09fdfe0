"""What variants change in linears, on the GPU: applied to rows, or rebuilt into dense weights.

Owns: which of a variant's parts a form's kernels compute and which the formulas, and what a
recorded operation does when the variant moves. Does not know where variants lie (arena.py) nor how
kernels read them (kinds.py).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tsugiki_kernels.check import check_own, check_spans
from tsugiki_kernels.cuda.kinds import Form, form_of
from tsugiki_kernels.cuda.launcher import Launcher
from tsugiki_kernels.cuda.program import Execution
from tsugiki_kernels.cuda.staging import CudaStaged, own
from tsugiki_kernels.cuda.table import CudaTable
from tsugiki_kernels.cuda.table import collect as collect_kind
from tsugiki_kernels.cuda.work_list import work_list
from tsugiki_kernels.delta_table import StagedDeltas, StagedTable, by_kind
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.formulas import bias_values
from tsugiki_kernels.interface import Deltas, DeltaTable, Shapes, Span, Staged
from tsugiki_kernels.reference import ReferenceBackend

FORMULAS = ReferenceBackend()


def apply(
    execution: Execution,
    x: Tensor,
    out: Tensor,
    staged: Sequence[Staged],
    spans: Sequence[Span],
) -> None:
    """See KernelBackend.apply. What is recorded names addresses: it refuses to run when a variant
    has moved. (Steps read tables, which follow.)

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_spans(x, out, len(staged), spans)
    linears = [own(variant) for variant in staged]
    kinds = {linear.kind for linear in linears}
    if len(kinds) > 1:
        names = sorted(kind.__name__ for kind in kinds)
        raise BadArgument(f"staged: expected one kind of delta, found {names}")
    places = [linear.region.address for linear in linears]
    execution.do(lambda: _check_unmoved(linears, places))
    for linear in linears:
        execution.watch(linear.region.version)
    sources = [linear.source for linear in linears]
    if any(source.parts for source in sources):
        execution.do(lambda: FORMULAS.apply(x, out, sources, spans), capturable=False)
    for form in dict.fromkeys(form for linear in linears for form, _ in linear.parts):
        _apply_form(execution, form, x, out, linears, spans)


def _check_unmoved(linears: Sequence[CudaStaged], places: Sequence[int]) -> None:
    if [linear.region.address for linear in linears] != places:
        raise BadArgument("staged: a variant has moved since this was recorded: record it again")


def _apply_form(
    execution: Execution,
    form: Form,
    x: Tensor,
    out: Tensor,
    linears: Sequence[CudaStaged],
    spans: Sequence[Span],
) -> None:
    work = work_list([linear.of(form) for linear in linears], spans)
    if len(work.segments) == 1:  # no span has a row
        return
    launcher = execution.launcher
    segments = work.segments.to(launcher.device)
    form.apply(
        launcher, x, out, work, segments, execution.scratch.take(torch.float32, work.scratch)
    )
    execution.keep(linears)


def collect(shapes: Shapes, staged: Sequence[Staged | None]) -> tuple[Deltas, ...]:
    """See KernelBackend.collect.

    Raises:
        BadArgument: a delta that does not fit its linear.
    """
    return tuple(
        StagedDeltas(kind, tuple(of_kind))
        if form_of(kind) is None
        else collect_kind(kind, shapes, of_kind)
        for kind, of_kind in by_kind(staged, own)
    )


def apply_table(
    execution: Execution, x: Tensor, out: Tensor, table: DeltaTable, place: int
) -> None:
    """See KernelBackend.apply_table.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    if isinstance(table, StagedTable):
        # what has no kernels: the formulas look at spans on the host, which a graph cannot
        at_once = execution.at_once()
        execution.do(lambda: apply(at_once, x, out, *table.of(place)), capturable=False)
        return
    held = check_own("table", table, CudaTable)
    held.ask(place)
    execution.do(lambda: held.apply(execution.direct, x, out, place))
    execution.watch(held.version)


def reconstruct(execution: Execution, base: Tensor, staged: Staged, out: Tensor) -> None:
    """See KernelBackend.reconstruct. What is recorded finds the variant wherever it is.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    linear = own(staged)
    if sum(part.width - part.offset for _, part in linear.parts) < len(base):
        # formulas take memory, which a graph cannot; the base's own rows are copied alone
        alone = not linear.source.parts
        execution.do(lambda: FORMULAS.reconstruct(base, linear.source, out), capturable=alone)
    execution.do(lambda: _rebuild(execution.direct, base, linear, out))
    execution.watch(linear.region.version)


def _rebuild(launcher: Launcher, base: Tensor, linear: CudaStaged, out: Tensor) -> None:
    for form in dict.fromkeys(form for form, _ in linear.parts):
        for part in linear.of(form):
            form.rebuild(launcher, base, part, out)


def bias(staged: Staged, rows: int, device: torch.device) -> Tensor | None:
    """See KernelBackend.bias.

    Raises:
        BadArgument: fewer rows than the parts have.
    """
    biases = own(staged).biases
    if not biases:
        return None
    width = max(placed.offset + placed.rows for placed in biases)
    if rows < width:
        raise BadArgument(f"rows: expected at least {width}, found {rows}")
    total = torch.zeros(rows, device=device)
    for placed in biases:
        part = total[placed.offset : placed.offset + placed.rows]
        part += bias_values(placed.bias, placed.rows)
    return total
