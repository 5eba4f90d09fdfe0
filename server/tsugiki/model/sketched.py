"""How a sketched base is stored: beside what it keeps dense, an index map and codebooks a linear.

Owns: names, settings and checks of these tensors (docs/format.md, "Sketched bases"). Does not know:
files, how a map is found (compress_base/), what multiplies with it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.errors import UnsupportedModel
from tsugiki_kernels.check import check_codebook_weight
from tsugiki_kernels.codebooks import INDEX_BITS, CodebookWeight, IndexMap
from tsugiki_kernels.errors import BadArgument

INDEX, CODEBOOKS = ".index", ".codebooks"  # after the name of the weight that they stand for
Take = Callable[[tuple[int, ...], torch.dtype], Tensor]  # memory for a tensor
KEY = "sketch"  # of config.json's "tsugiki" object


@dataclass(frozen=True, slots=True)
class SketchSettings:
    """What all sketched linears of a base have in common."""

    bits: int  # of an index
    groups: int  # codebooks of a row

    def __post_init__(self) -> None:
        if self.bits not in INDEX_BITS or self.groups < 1:
            raise UnsupportedModel(
                f"a sketch of {self.bits} bits and {self.groups} groups per row; bits are 2, 3 or "
                "4, groups at least 1"
            )

    def stored(self) -> dict[str, int]:
        """As config.json has it."""
        return {"bits": self.bits, "groups": self.groups}

    def index_of(self, shape: tuple[int, int], codes: Tensor) -> IndexMap:
        """The map of these stored codes."""
        return IndexMap(shape, self.bits, self.groups, codes)


def sketch_settings(config: Mapping[str, Any]) -> SketchSettings | None:
    """What config.json says as {"tsugiki": {"sketch": {"bits": B, "groups": G}}}; None: nothing.

    Raises:
        UnsupportedModel: it says something else.
    """
    ours = config.get("tsugiki")
    found = ours.get(KEY) if isinstance(ours, dict) else None
    if found is None:
        return None
    fits = isinstance(found, dict) and set(found) == {"bits", "groups"}
    if not fits or not all(type(value) is int for value in found.values()):
        raise UnsupportedModel(f"config.json has tsugiki.sketch {found!r}; expected bits, groups")
    return SketchSettings(found["bits"], found["groups"])


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a checkpoint whose linears are dense again."""
    ours = config.get("tsugiki")
    if not isinstance(ours, dict) or KEY not in ours:
        return dict(config)
    return {**config, "tsugiki": {key: value for key, value in ours.items() if key != KEY}}


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
    codes = take((rows, first.codes.shape[1]), torch.uint8)
    torch.cat([weight.index.codes for weight in weights], out=codes)
    codebooks = take((rows, *first.codebook_shape[1:]), torch.float16)
    torch.cat([weight.codebooks for weight in weights], out=codebooks)
    return CodebookWeight(
        IndexMap((rows, first.shape[1]), first.bits, first.groups, codes), codebooks
    )
