"""What linears of all compressed weights ask of their operands. Does not know: any form."""

from collections.abc import Sequence

from torch import Tensor

from tsugiki_kernels.check import check_on_cpu, check_spans, check_tensor
from tsugiki_kernels.cpu.deltas import check_strides
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span


def checked(
    x: Tensor,
    bias: Tensor | None,
    out: Tensor,
    spans: Sequence[Span] | None,
    shape: tuple[int, int],
    **weight: Tensor,
) -> tuple[Sequence[Span], Tensor | None]:
    """The rows to compute and the bias in float32; `shape`: [out, in] of the weight, whose tensors
    `weight` names.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    spans = [(0, len(x))] if spans is None else spans
    check_spans(x, out, len(spans), spans)
    check_strides(x, out)
    check_on_cpu(x=x, out=out, **weight)
    outputs, inputs = shape
    if (x.shape[1], out.shape[1]) != (inputs, outputs):
        raise BadArgument(f"x, out: expected widths {inputs} and {outputs}")
    plain = None if bias is None else bias.float()
    if plain is not None:
        check_tensor("bias", plain, (plain.dtype,), (outputs,))
    return spans, plain
