"""How the base holds the weight of one fused linear.

Owns: the `BaseForm` protocol, its ordinary implementation, the dense weight, the one of a sketched
base (an index map that variants share, and the base's own codebooks), and the one of a CALDERA base
(a backbone that variants share, and a slot of factors). Does not know:
variants (variant_linear.py adds them), names, files.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from tsugiki.errors import Unsupported
from tsugiki_kernels.codebooks import CodebookWeight
from tsugiki_kernels.deltas import LowRankDelta, Placed
from tsugiki_kernels.formulas import own_tensors
from tsugiki_kernels.interface import (
    KernelBackend,
    ReadsCodebooks,
    ReadsLattices,
    Span,
    Staged,
)
from tsugiki_kernels.lattice import LatticeWeight


class BaseForm(Protocol):
    """The resident weight of a fused linear, computed once for all rows of a step."""

    bias: Tensor | None  # [out], activation dtype
    # the base's own low-rank part, for rows whose variant brings none; None: the form has no slots
    own: Staged | None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    @property
    def nbytes(self) -> int:
        """Resident bytes."""

    def matmul(
        self, x: Tensor, out: Tensor, spans: Sequence[Span] | None, kernels: KernelBackend
    ) -> None:
        """out = x W^T + bias for the rows of these spans (None: all); the others are untouched.

        x: [rows, in], out: [rows, out], activation dtype.
        """

    def dense(self) -> Tensor:
        """W [out, in], activation dtype, packed: what deltas are added to for rows that skip it."""


class DenseForm:
    """An ordinary weight, packed by the kernels that will read it."""

    own: Staged | None = None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return (self.weight.shape[0], self.weight.shape[1])

    @property
    def nbytes(self) -> int:
        """Bytes of weight and bias."""
        tensors = [self.weight] if self.bias is None else [self.weight, self.bias]
        return sum(t.numel() * t.element_size() for t in tensors)

    def matmul(
        self, x: Tensor, out: Tensor, spans: Sequence[Span] | None, kernels: KernelBackend
    ) -> None:
        """See BaseForm.matmul."""
        kernels.linear(x, self.weight, self.bias, out, spans)

    def dense(self) -> Tensor:
        """See BaseForm.dense."""
        return self.weight


class SketchForm:
    """A weight that is looked up; variants add to its codebooks."""

    own: Staged | None = None

    def __init__(self, weight: CodebookWeight, bias: Tensor | None = None) -> None:
        self.weight = weight
        self.bias = bias

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the index map, the base's codebooks and the bias."""
        tensors = [self.weight.index.codes, self.weight.codebooks]
        tensors += [] if self.bias is None else [self.bias]
        return sum(t.numel() * t.element_size() for t in tensors)

    def matmul(
        self, x: Tensor, out: Tensor, spans: Sequence[Span] | None, kernels: KernelBackend
    ) -> None:
        """See BaseForm.matmul.

        Raises:
            Unsupported: kernels that cannot read codebooks.
        """
        codebook_kernels(kernels).linear_codebooks(x, self.weight, self.bias, out, spans)

    def dense(self) -> Tensor:
        """See BaseForm.dense.

        Raises:
            Unsupported: always; nothing asks, for no variant is rebuilt here.
        """
        raise Unsupported("a sketched linear has no dense weight in memory")


class LatticeForm:
    """A backbone of lattice codes, and a slot of low-rank factors: the base's own or a variant's.

    The slot is no part of `matmul`: whoever plans a step says which rows take which factors.
    """

    def __init__(
        self,
        weight: LatticeWeight,
        factors: Mapping[int, LowRankDelta],
        kernels: KernelBackend,
        bias: Tensor | None = None,
    ) -> None:
        """`factors`: the base's own, by the first output of the linear; they may have rank 0."""
        self.weight = weight
        self.bias = bias
        self.factors = factors
        placed = [Placed(at, delta) for at, delta in factors.items() if len(delta.a)]
        self.own = kernels.stage(placed) if placed else None

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.weight.shape

    @property
    def nbytes(self) -> int:
        """Bytes of the codes, the base's own factors and the bias."""
        tensors = [t for d in self.factors.values() for t in own_tensors(d).values()]
        tensors += [] if self.bias is None else [self.bias]
        return self.weight.nbytes + sum(t.numel() * t.element_size() for t in tensors)

    def matmul(
        self, x: Tensor, out: Tensor, spans: Sequence[Span] | None, kernels: KernelBackend
    ) -> None:
        """See BaseForm.matmul: the backbone alone.

        Raises:
            Unsupported: kernels that cannot read lattice codes.
        """
        lattice_kernels(kernels).linear_lattice(x, self.weight, self.bias, out, spans)

    def dense(self) -> Tensor:
        """See BaseForm.dense.

        Raises:
            Unsupported: always; nothing asks, for no variant is rebuilt here.
        """
        raise Unsupported("a linear on a lattice has no dense weight in memory")


def lattice_kernels(kernels: KernelBackend) -> ReadsLattices:
    """These kernels, as ones that can serve a CALDERA base.

    Raises:
        Unsupported: they cannot.
    """
    if not isinstance(kernels, ReadsLattices):
        raise Unsupported(
            f"the {kernels.name} kernels cannot read a CALDERA base; use --kernels reference"
        )
    return kernels


def codebook_kernels(kernels: KernelBackend) -> ReadsCodebooks:
    """These kernels, as ones that can serve a sketched base.

    Raises:
        Unsupported: they cannot.
    """
    if not isinstance(kernels, ReadsCodebooks):
        raise Unsupported(
            f"the {kernels.name} kernels cannot read a sketched base; use --kernels reference"
        )
    return kernels
