"""From a verified file to a variant in memory: does it fit this base, and what goes where.

Owns: the checks against a base (fingerprint, names, shapes, vocabulary), the grouping of packed
linears into fused ones, vectors, biases, embeddings, added tokens.
Does not know: tiers and budgets (variants/), activations (model/), formats of codecs.

A module of a variant file is named like the parameter it changes. Rows of an embedding or of
lm_head that are replaced or added stand apart under the name with the suffix ":rows", so that
one parameter can have both a compressed change and new rows.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki.codecs import CODECS
from tsugiki.codecs.artifact import Artifact
from tsugiki.codecs.base import (
    Codec,
    EmbeddingDelta,
    FusedPart,
    Layout,
    Packed,
    PlacedPacked,
    ResidentVariant,
    StagedLinear,
)
from tsugiki.codecs.deltadq import COLUMNS
from tsugiki.codecs.factors import beside
from tsugiki.codecs.fit import (
    LM_HEAD,
    ROWS,
    check_base,
    check_modules,
    vocab_size,
)
from tsugiki.codecs.masks import MaskCache, MaskLease
from tsugiki.errors import InvalidArtifact
from tsugiki_kernels.codebooks import IndexMap
from tsugiki_kernels.deltas import LowRankDelta, Placed
from tsugiki_kernels.interface import Allocate, KernelBackend, empty_extent

__all__ = ["Destination", "check_base", "stage_variant"]


def nothing() -> None:
    """No pause."""


def no_index(name: str) -> IndexMap | None:
    """A base without index maps."""
    return None


def no_factors(name: str) -> LowRankDelta | None:
    """A base without slots for factors."""
    return None


@dataclass(frozen=True, slots=True)
class Destination:
    """Where variants become resident: on which base, in the form that whose kernels want."""

    layout: Layout
    base_vector: Callable[[str], Tensor]  # a norm weight or a bias of the base, by name
    dtype: torch.dtype  # of activations
    kernels: KernelBackend
    masks: MaskCache  # gains what a variant needs
    allocate: Allocate = empty_extent  # the memory of a variant
    pause: Callable[[], None] = nothing  # called before each linear
    index_of: Callable[[str], IndexMap | None] = no_index  # of a weight of the base, by name
    factors_of: Callable[[str], LowRankDelta | None] = no_factors  # its own, by name


def stage_variant(artifact: Artifact, destination: Destination) -> ResidentVariant:
    """The resident form of a variant whose file was read and whose base was checked.

    All that the variant owns lies in one extent: nothing of the artifact need be kept.

    Raises:
        InvalidArtifact: a module that this base does not have or of another shape, codecs mixed in
            one fused linear, added tokens without rows.
    """
    check_modules(artifact.header, destination.layout)
    lease = MaskLease(destination.masks)
    target = _Target(destination, lease)
    linears = _linears(artifact.modules, target)
    vectors = {n: _vector(n, artifact.modules[n], target) for n in _vectors(artifact, target)}
    embedding = _embedding(artifact, target)
    head = _head_rows(artifact, target, embedding)
    others = _tensors(vectors, embedding, head)
    parts = [linear.parts for linear in linears.values()]
    placed = destination.kernels.stage_all(parts, others, destination.allocate)
    moved = {id(old): new for old, new in zip(others, placed.others, strict=True)}
    return ResidentVariant(
        digest=artifact.header.digest,
        vocab_size=vocab_size(artifact.header, target.layout),
        linears={
            fused: StagedLinear(linear.codec, staged, linear.reconstruct_from)
            for (fused, linear), staged in zip(linears.items(), placed.linears, strict=True)
        },
        vectors={n: moved[id(vector)] for n, vector in vectors.items()},
        embedding=None if embedding is None else _moved(embedding, moved),
        lm_head_rows=None if head is None else moved[id(head.rows)],
        nbytes=placed.nbytes,
        lm_head_row_ids=None if head is None else moved[id(head.ids)],
        shared=lease.held,
    )


class _Target(NamedTuple):
    """Where one variant becomes resident, and the masks that it holds there."""

    destination: Destination
    masks: MaskLease

    @property
    def layout(self) -> Layout:
        return self.destination.layout

    @property
    def dtype(self) -> torch.dtype:
        return self.destination.dtype

    def base_vector(self, name: str) -> Tensor:
        return self.destination.base_vector(name)


class _Linear(NamedTuple):
    """A fused linear before it is staged."""

    codec: Codec
    parts: list[Placed]
    reconstruct_from: int | None


class _Rows(NamedTuple):
    ids: Tensor  # int64 [k], ascending
    rows: Tensor  # [k, hidden], activation dtype


def _linears(modules: Mapping[str, Packed], target: _Target) -> dict[str, _Linear]:
    """Each fused linear that the variant touches."""
    layout = target.layout
    weights = {n: p for n, p in modules.items() if n in layout.linears and n != LM_HEAD}
    shares = layout.tied and not _own_head(modules)
    head = modules.get(layout.embedding if shares else LM_HEAD)
    if head is not None:
        weights[LM_HEAD] = head
    biases = {
        weight: _bias(bias, modules[bias], target)
        for bias, weight in _bias_names(modules, layout).items()
    }
    weights = {n: p for n, p in weights.items() if n in biases or not _is_nothing(p)}
    touched = sorted(weights.keys() | biases.keys(), key=lambda n: _place(layout.linears[n]))
    by_fused: dict[str, list[str]] = {}
    for weight in touched:
        by_fused.setdefault(layout.linears[weight].fused, []).append(weight)
    return {fused: _fused(names, weights, biases, target) for fused, names in by_fused.items()}


def _is_nothing(packed: Packed) -> bool:
    """A module that says "like the base": lm_head of a variant that unties but keeps it."""
    return packed.options.get("mode") == "none"


def _own_head(modules: Mapping[str, Packed]) -> bool:
    """Whether the variant has an lm_head of its own, whatever its base has."""
    return LM_HEAD in modules or LM_HEAD + ROWS in modules


def _place(part: FusedPart) -> tuple[str, int]:
    return part.fused, part.offset


def _bias_names(modules: Iterable[str], layout: Layout) -> dict[str, str]:
    """Names of changed biases -> the weight of their linear; the base may have none there."""
    possible = {f"{w.removesuffix('.weight')}.bias": w for w in layout.bias_allowed}
    possible |= layout.biases
    return {name: possible[name] for name in modules if name in possible}


def _fused(
    names: list[str],
    weights: Mapping[str, Packed],
    biases: Mapping[str, Tensor],
    target: _Target,
) -> _Linear:
    target.destination.pause()
    codec = CODECS[next((weights[name].codec for name in names if name in weights), "dense")]
    parts = []
    limits = []
    for name in names:
        place = target.layout.linears[name]
        packed = weights[name] if name in weights else codec.zero(place.shape)
        index, own = target.destination.index_of(name), target.destination.factors_of(name)
        part = PlacedPacked(place.offset, packed, biases.get(name), index, own)
        delta = codec.resident(part, target.dtype, target.masks)
        if own is not None and codec.role == "delta" and isinstance(delta, LowRankDelta):
            delta = beside(own, delta)  # a slot holds all that is of low rank
        parts.append(Placed(place.offset, delta))
        if index is None and own is None:  # else there is no dense weight to rebuild from
            limits.append(codec.rows_to_reconstruct(packed.options, target.dtype))
    if all(isinstance(placed.delta, LowRankDelta) for placed in parts):
        parts += _kept_factors(names, target.destination)
    known = [limit for limit in limits if limit is not None]
    return _Linear(codec, parts, min(known) if known else None)


def _kept_factors(names: list[str], destination: Destination) -> list[Placed]:
    """The base's own factors of the linears that are fused with these and that a variant which
    fills their slot leaves as they are."""
    layout = destination.layout
    fused = layout.linears[names[0]].fused
    left = [n for n, part in layout.linears.items() if part.fused == fused and n not in names]
    kept = ((layout.linears[name].offset, destination.factors_of(name)) for name in left)
    return [Placed(offset, own) for offset, own in kept if own is not None and len(own.a)]


def _vectors(artifact: Artifact, target: _Target) -> list[str]:
    """The layout's own strings: those of a file would be kept for each variant again."""
    return [name for name in target.layout.vectors if name in artifact.modules]


def _vector(name: str, packed: Packed, target: _Target) -> Tensor:
    """The whole weight, in the dtype in which the decoder multiplies with it."""
    weight = CODECS[packed.codec].effective(target.base_vector(name), packed).weight
    return weight if target.layout.vectors_in_float32 else weight.to(target.dtype)


def _bias(name: str, packed: Packed, target: _Target) -> Tensor:
    """The change of a bias, float32 [out]; a base without this bias has zeros."""
    if name in target.layout.biases:
        base = target.base_vector(name).float()
    else:
        base = torch.zeros(packed.shape)
    return CODECS[packed.codec].effective(base, packed).weight - base


def _embedding(artifact: Artifact, target: _Target) -> EmbeddingDelta | None:
    layout, modules = target.layout, artifact.modules
    packed = modules.get(layout.embedding)
    rows = _rows(modules.get(layout.embedding + ROWS), target)
    if packed is None and rows is None:
        return None
    hidden = layout.embedding_shape[1]
    ids, full = rows or _Rows(
        torch.empty(0, dtype=torch.int64), torch.empty(0, hidden, dtype=target.dtype)
    )
    if packed is None:
        return EmbeddingDelta(ids, full, None, None)
    codec = CODECS[packed.codec]
    prepared = codec.prepare_lookup(packed, target.masks)
    kept = replace(prepared, tensors=dict(prepared.tensors))  # no longer views of a file's blobs
    return EmbeddingDelta(ids, full, kept, codec)


def _head_rows(
    artifact: Artifact, target: _Target, embedding: EmbeddingDelta | None
) -> _Rows | None:
    """Whole rows of the output side: lm_head's own, or those of a tied embedding."""
    if not target.layout.tied or _own_head(artifact.modules):
        return _rows(artifact.modules.get(LM_HEAD + ROWS), target)
    if embedding is None or not len(embedding.row_ids):
        return None
    return _Rows(embedding.row_ids, embedding.rows)


def _rows(packed: Packed | None, target: _Target) -> _Rows | None:
    if packed is None:
        return None
    ids = packed.tensors["ids"].long()
    base = target.layout.embedding_shape[0]
    if int((ids >= base).sum()) != max(0, packed.shape[0] - base):
        raise InvalidArtifact(
            f"module {packed.name!r} does not hold all rows from {base} to {packed.shape[0] - 1}: "
            "compress again from the full checkpoint"
        )
    return _Rows(ids, packed.tensors["values"].to(target.dtype))


def _tensors(
    vectors: Mapping[str, Tensor], embedding: EmbeddingDelta | None, head: _Rows | None
) -> list[Tensor]:
    """What the variant owns beside its linears; the masks that it shares are not among it."""
    tensors = list(vectors.values())
    if embedding is not None:
        tensors += [embedding.row_ids, embedding.rows]
        parts = {} if embedding.delta is None else embedding.delta.tensors
        tensors += [tensor for part, tensor in parts.items() if part != COLUMNS]
    if head is not None:
        tensors += [head.ids, head.rows]
    return tensors


def _moved(embedding: EmbeddingDelta, moved: Mapping[int, Tensor]) -> EmbeddingDelta:
    """The embedding with its tensors at their new place."""
    delta = embedding.delta
    if delta is not None:
        parts = {part: moved.get(id(tensor), tensor) for part, tensor in delta.tensors.items()}
        delta = replace(delta, tensors=parts)
    ids, rows = moved[id(embedding.row_ids)], moved[id(embedding.rows)]
    return replace(embedding, row_ids=ids, rows=rows, delta=delta)
