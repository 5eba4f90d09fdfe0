"""How a sketched base is stored: beside what it keeps dense, an index map and codebooks a linear.

Owns: names, settings and checks of these tensors (docs/format.md, "Sketched bases"). Does not know:
files, how a map is found (compress_base/), what multiplies with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from tsugiki.errors import UnsupportedModel
from tsugiki.model.slab import Take, below
from tsugiki.model.stored_form import Read, settings_of
from tsugiki_kernels.check_weights import check_codebook_weight
from tsugiki_kernels.codebooks import INDEX_BITS, CodebookWeight, IndexMap, looked_up
from tsugiki_kernels.errors import BadArgument

INDEX, CODEBOOKS = ".index", ".codebooks"  # after the name of the weight that they stand for
KEY = "sketch"  # of config.json's "tsugiki" object


@dataclass(frozen=True, slots=True)
class SketchSettings:
    """What all sketched linears of a base have in common."""

    bits: int  # of an index
    groups: int  # codebooks of a row

    marker: ClassVar[str] = INDEX
    suffixes: ClassVar[frozenset[str]] = frozenset({INDEX, CODEBOOKS})
    resident: ClassVar[tuple[str, ...]] = (INDEX, CODEBOOKS)
    dense_dtype: ClassVar[str] = "F16"

    def __post_init__(self) -> None:
        if self.bits not in INDEX_BITS or self.groups < 1:
            raise UnsupportedModel(
                f"a sketch of {self.bits} bits and {self.groups} groups per row; bits are 2, 3 or "
                "4, groups at least 1"
            )

    def stored(self) -> dict[str, int]:
        """As config.json has it."""
        return {"bits": self.bits, "groups": self.groups}

    def shape(self, marker_shape: tuple[int, ...], read: Read) -> tuple[int, int]:
        """See `StoredForm.shape`."""
        rows, width = marker_shape
        return rows, width * 8 // self.bits

    def weight(self, name: str, shape: tuple[int, int], read: Read) -> CodebookWeight:
        """The stored tensors of one linear.

        Raises:
            UnsupportedModel: they do not fit together.
        """
        return checked(name, self.index_of(shape, read(INDEX)), read(CODEBOOKS))

    def dense(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """See `StoredForm.dense`: float16, for every weight is a value of a codebook."""
        found = self.weight(name, shape, read)
        return looked_up(found.index, found.codebooks).half()

    def backbone(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """See `StoredForm.backbone`: variants hold differences to the base's codebooks."""
        return self.dense(name, shape, read)

    def index_of(self, shape: tuple[int, int], codes: Tensor) -> IndexMap:
        """The map of these stored codes."""
        return IndexMap(shape, self.bits, self.groups, codes)


def sketch_settings(config: Mapping[str, Any]) -> SketchSettings | None:
    """What config.json says as {"tsugiki": {"sketch": {"bits": B, "groups": G}}}; None: nothing.

    Raises:
        UnsupportedModel: it says something else.
    """
    found = settings_of(config, KEY, ("bits", "groups"))
    return None if found is None else SketchSettings(*found)


def checked(name: str, index: IndexMap, codebooks: Tensor) -> CodebookWeight:
    """The stored tensors of one linear as a weight.

    Raises:
        UnsupportedModel: shapes or dtypes that do not fit, codebooks that do not ascend.
    """
    weight = CodebookWeight(index, codebooks)
    try:
        check_codebook_weight(weight)
    except BadArgument as error:
        raise UnsupportedModel(f"{name}: {error}; compress the base again") from error
    if not bool((codebooks.float().diff(dim=2) > 0).all()):
        raise UnsupportedModel(f"{name}: a codebook does not ascend; compress the base again")
    return weight


def stacked(weights: Sequence[CodebookWeight], take: Take) -> CodebookWeight:
    """Weights below each other, in memory from `take(shape, dtype)`."""
    first = weights[0].index
    rows = sum(weight.shape[0] for weight in weights)
    codes = below(take, [weight.index.codes for weight in weights])
    codebooks = below(take, [weight.codebooks for weight in weights])
    return CodebookWeight(
        IndexMap((rows, first.shape[1]), first.bits, first.groups, codes), codebooks
    )
