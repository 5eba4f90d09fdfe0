"""What the delta codecs have in common: a kernel reads their resident form as it is.

Owns: the parts of `Codec` that say nothing about a method. Does not know: any method.
"""

from collections.abc import Sequence

from torch import Tensor

from tsugiki.codecs.base import Packed, Role
from tsugiki.codecs.masks import Masks
from tsugiki_kernels.interface import KernelBackend, Span, Staged


class DeltaCodec:
    """Base of the codecs that add to a weight through one kernel operation."""

    role: Role = "delta"
    tolerance = 2e-5

    def apply(
        self,
        x: Tensor,
        out: Tensor,
        staged: Sequence[Staged],
        spans: Sequence[Span],
        kernels: KernelBackend,
    ) -> None:
        """See `Codec.apply`."""
        kernels.apply(x, out, staged, spans)

    def prepare_lookup(self, packed: Packed, masks: Masks) -> Packed:
        """See `Codec.prepare_lookup`: nothing to prepare."""
        return packed
