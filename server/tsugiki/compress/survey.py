"""What a fine-tune changes: every tensor held against its base, before anything is compressed.

Owns: pairing by canonical name, the list of changes, the complete list of what cannot be carried.
Does not know: codecs, files, text.

Reads one pair of tensors at a time; memory stays that of the largest pair.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tsugiki.codecs.base import Layout
from tsugiki.errors import CompressionRefused
from tsugiki.model.checkpoint import LM_HEAD, Checkpoint

Kind = Literal["linear", "bias", "vector", "embedding", "lm_head"]
FLOATS = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16})


@dataclass(frozen=True, slots=True)
class Change:
    """One tensor that differs from the base's."""

    name: str
    kind: Kind
    shape: tuple[int, ...]  # the fine-tune's
    rows: Tensor | None = None  # int64, the changed rows of an embedding or lm_head, ascending

    @property
    def numel(self) -> int:
        """Parameters of the tensor."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True)
class Pair:
    """The two sides of a change."""

    change: Change
    base: Tensor  # float32; the base's rows only
    tuned: Tensor  # float32; added rows included


class Pairs:
    """Matching tensors of a base and a fine-tune, read one pair at a time."""

    def __init__(self, base: Checkpoint, tuned: Checkpoint, layout: Layout) -> None:
        self.base = base
        self.tuned = tuned
        self.layout = layout

    def names(self) -> list[str]:
        """Every tensor of either side, and lm_head where only the fine-tune has its own."""
        return sorted(set(self.base.names()) | set(self.tuned.names()))

    def counterpart(self, name: str) -> str | None:
        """The base's tensor that this one started from; None: the base has none (see zero_bias)."""
        if name in self.base:
            return name
        if name == LM_HEAD and self.layout.tied:  # an untied fine-tune of a tied base
            return self.layout.embedding
        return None

    def zero_bias(self, name: str) -> bool:
        """Whether this is a bias that the fine-tune has and the base could have: it counts as 0."""
        weight = f"{name.removesuffix('.bias')}.weight"
        allowed = weight in self.layout.bias_allowed
        return name.endswith(".bias") and name not in self.base and allowed

    def kind(self, name: str) -> Kind | None:
        """What a variant may do with this tensor; None: nothing."""
        if name == LM_HEAD:
            return "lm_head"
        if name == self.layout.embedding:
            return "embedding"
        if name in self.layout.linears:
            return "linear"
        if name in self.layout.vectors:
            return "vector"
        return "bias" if name in self.layout.biases or self.zero_bias(name) else None

    def read(self, change: Change, *, backbone: bool = False) -> Pair:
        """Both sides of a change in float32; with `backbone` the base's side without what variants
        of role `parameters` replace."""
        tuned = self.tuned.tensor(change.name).float()
        counterpart = self.counterpart(change.name) if backbone else None
        if counterpart is not None:
            return Pair(change, self.base.backbone(counterpart).float(), tuned)
        return Pair(change, self.base_tensor(change.name).float(), tuned)

    def base_tensor(self, name: str) -> Tensor:
        """The base's side, as stored; zeros for a bias that only the fine-tune has."""
        counterpart = self.counterpart(name)
        if counterpart is None:
            return torch.zeros(self.tuned.shape(name))
        return self.base.tensor(counterpart)


@dataclass(frozen=True, slots=True)
class Survey:
    """All changes of a fine-tune, in name order, and the size of the whole."""

    changes: tuple[Change, ...]
    unchanged: int  # tensors left out
    model_parameters: int  # parameters of the whole fine-tune


def survey(pairs: Pairs, names: Iterable[str] | None = None) -> Survey:
    """Compare every tensor. `names` may be `pairs.names()` wrapped in a progress display.

    Raises:
        CompressionRefused: with one line for each tensor that is missing, has another shape, holds
            NaN or infinity, or changed although a variant cannot carry it; or nothing changed.
    """
    changes: list[Change] = []
    problems: list[str] = []
    unchanged = 0
    for name in names if names is not None else pairs.names():
        problem = _structure_problem(pairs, name)
        change = None if problem else _compare(pairs, name)
        if problem or isinstance(change, str):
            problems.append(problem or str(change))
        elif change is None:
            unchanged += 1
        else:
            changes.append(change)
    refuse(problems)
    return Survey(tuple(changes), unchanged, parameters_of(pairs.tuned))


def parameters_of(checkpoint: Checkpoint) -> int:
    """Parameters of a whole checkpoint; tied embeddings count once."""
    return sum(torch.Size(checkpoint.shape(name)).numel() for name in checkpoint.names())


def refuse(problems: list[str]) -> None:
    """Raise the complete list, if there is any.

    Raises:
        CompressionRefused: there is a problem.
    """
    if problems:
        shown = "; ".join(problems)
        raise CompressionRefused(f"this fine-tune cannot be carried ({len(problems)}): {shown}")


def _structure_problem(pairs: Pairs, name: str) -> str | None:
    """What can be seen without reading: presence, shape, dtype."""
    if name not in pairs.tuned:
        return f"{name}: missing from the fine-tune; save the whole model again"
    counterpart = pairs.counterpart(name)
    if counterpart is None and not pairs.zero_bias(name):
        return f"{name}: the base has no such tensor"
    if pairs.tuned.dtype(name) not in FLOATS:
        dtype = pairs.tuned.stored_dtype(name)
        return f"{name}: dtype {dtype}; give the fine-tune in float32 or bfloat16, not quantized"
    theirs = pairs.tuned.shape(name)
    ours = theirs if counterpart is None else pairs.base.shape(counterpart)
    grows = pairs.kind(name) in ("embedding", "lm_head")
    if ours != theirs and not (grows and ours[1:] == theirs[1:] and theirs[0] > ours[0]):
        return f"{name}: shape {list(theirs)}, but {list(ours)} in the base"
    return None


def _compare(pairs: Pairs, name: str) -> Change | str | None:
    """A change, a problem in words, or None when nothing changed."""
    tuned = pairs.tuned.tensor(name)
    base = pairs.base_tensor(name)
    bad = sum(int((~torch.isfinite(block)).sum()) for block in _blocks(tuned))
    if bad:
        return f"{name}: {bad} values are NaN or infinite; the training run diverged"
    kind = pairs.kind(name)
    if kind in ("embedding", "lm_head"):
        rows = changed_rows(base, tuned)
        return Change(name, kind, tuple(tuned.shape), rows) if len(rows) else None
    if _equal(base, tuned):
        return None
    if kind is None:
        return f"{name}: changed, and a variant of this architecture cannot carry it"
    return Change(name, kind, tuple(tuned.shape))


def changed_rows(base: Tensor, tuned: Tensor) -> Tensor:
    """Indices of rows that differ, added rows included: int64, ascending."""
    blocks = zip(_blocks(base), _blocks(tuned[: len(base)]), strict=True)
    differs = torch.cat([(a.float() != b.float()).any(1) for a, b in blocks])
    added = torch.ones(len(tuned) - len(base), dtype=torch.bool)
    return torch.cat([differs, added]).nonzero().flatten()


def _equal(base: Tensor, tuned: Tensor) -> bool:
    pairs = zip(_blocks(base), _blocks(tuned), strict=True)
    return all(torch.equal(a.float(), b.float()) for a, b in pairs)


def _blocks(tensor: Tensor, rows: int = 8192) -> Iterator[Tensor]:
    """Slices of some rows, so that conversions never double a large tensor."""
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows]
