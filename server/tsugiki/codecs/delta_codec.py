"""What the delta codecs have in common: a kernel reads their resident form as it is.

Owns: the parts of `Codec` that say nothing about a method. Does not know: any method.
"""

from tsugiki.codecs.base import Packed, Role
from tsugiki.codecs.masks import Masks


class DeltaCodec:
    """Base of the codecs that add to a weight through one kernel operation."""

    role: Role = "delta"
    wants_grams = False
    tolerance = 2e-5

    def prepare_lookup(self, packed: Packed, masks: Masks) -> Packed:
        """See `Codec.prepare_lookup`: nothing to prepare."""
        return packed
