"""What a codec is, and the packed and resident forms of a variant that every layer shares.

Owns: the `Codec` protocol, `Packed` (one module as stored in a file), `Layout` (how a base's
linears are named and fused), `ResidentVariant` (a variant in memory, ready for a step).
Does not know: files (artifact.py), tiers (variants/), requests (engine/), activations (model/).
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tsugiki.codecs.masks import Masks
from tsugiki_kernels.codebooks import IndexMap
from tsugiki_kernels.deltas import Delta, LowRankDelta
from tsugiki_kernels.interface import Staged

Role = Literal["delta", "parameters"]
Options = Mapping[str, Any]
Part = tuple[torch.dtype, tuple[int, ...]]  # how one stored tensor of a packed module looks


@dataclass(frozen=True, slots=True)
class Packed:
    """One module (a linear, a vector, an embedding) as a codec stores it."""

    codec: str
    shape: tuple[int, ...]  # of the dense parameter: [out, in] or [dim]
    options: Options  # JSON values: seed, alpha, bits, zero, gain ... all that decoding needs
    tensors: Mapping[str, Tensor]  # part name -> tensor, as stored in the file
    name: str = ""  # canonical name of the parameter: masks are drawn from it

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


@dataclass(frozen=True, slots=True)
class ModuleStats:
    """Calibration statistics of one linear's input, over the tokens of the calibration file."""

    mean: Tensor  # float32 [in], E[x]
    second_moment: Tensor  # float32 [in], E[x_j^2]
    tokens: int
    gram: Tensor | None = None  # float32 [in, in], E[x x^T], where a codec asks for it


@dataclass(frozen=True, slots=True)
class Dense:
    """The effective dense form of a packed module: the oracle of the weight law."""

    weight: Tensor  # float32, the shape of the dense parameter
    bias: Tensor | None = None  # float32 [out], added to the output beside the module's own bias


@dataclass(frozen=True, slots=True)
class PlacedPacked:
    """A packed linear and the output column of the fused linear at which it starts."""

    offset: int
    packed: Packed
    bias: Tensor | None = None  # float32 [out], a changed bias of the module, as a delta
    index: IndexMap | None = None  # of the base's linear, where the base is sketched
    factors: LowRankDelta | None = None  # the base's own, where it has a slot for them


class Codec(Protocol):
    """One way to store and apply a fine-tune. Stateless; one module-level CODEC instance per file.

    The weight law holds for every backend, dtype and segment layout: what kernels add for the
    `resident` form equals `x @ (effective(base, packed).weight - base).T + bias` within
    `tolerance`.
    """

    name: str
    role: Role
    wants_grams: bool  # whether `compress` makes use of `ModuleStats.gram`
    tolerance: float  # relative to the largest |output|, in float32 arithmetic

    def compress(
        self, base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options
    ) -> Packed:
        """Pack `tuned - base` ([out, in], float32). `options` holds the module's `name` too.

        Raises:
            CompressionRefused: shapes or values that the codec cannot carry.
        """

    def effective(self, base: Tensor, packed: Packed) -> Dense:
        """The variant's dense weight, float32: base ([out, in]) plus what is stored."""

    def parts(self, shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
        """Which tensors a module of this shape and these options stores: name -> (dtype, shape).

        A pure function of its arguments: a file therefore stores no shapes of parts. Of floats it
        asks only that they are finite float32; they shape nothing.

        Raises:
            InvalidArtifact: an option that is missing, of the wrong type or out of range.
        """

    def zero(self, shape: tuple[int, ...]) -> Packed:
        """A packed linear that adds nothing: the carrier of a bias that changed alone."""

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        """The stored change of rows `ids` (int64 [n]) of an embedding, float32 [n, hidden].

        Costs in proportion to n, never to the vocabulary.
        """

    def prepare_lookup(self, packed: Packed, masks: Masks) -> Packed:
        """The packed embedding with whatever makes `lookup` cheap; lives in memory alone."""

    def validate(self, packed: Packed) -> None:
        """Check options, part names, shapes, dtypes, finiteness of an untrusted packed module.

        Raises:
            InvalidArtifact: naming the part, the value found and the value expected.
        """

    def sound_if_finite(self, options: Options) -> bool:
        """Whether `validate` can refuse nothing more, once `parts` took the options and every float
        part is known to be finite. False costs time, never safety."""

    def changes(self, packed: Packed) -> bool:
        """Whether a validated module changes its parameter: False only when every entry and every
        bias that it adds is exactly zero. What replaces values counts, the base being elsewhere."""

    def resident(self, part: PlacedPacked, dtype: torch.dtype, masks: Masks) -> Delta:
        """What a kernel reads of a validated linear: stored tensors as they are where it can.

        Pure; runs on the loader thread. `dtype` is that of activations; masks come from `masks`, so
        that variants of one seed share them.
        """

    def rows_to_reconstruct(self, packed_options: Options, dtype: Any) -> int | None:
        """From how many tokens of one request's chunk a rebuilt dense weight is cheaper than the
        fused form (measured break-even); None: never."""


@dataclass(frozen=True, slots=True)
class FusedPart:
    """Where one Hugging Face linear lives inside a fused linear of the decoder."""

    fused: str  # for example "layers.3.qkv"
    offset: int  # first output row in the fused weight
    shape: tuple[int, int]  # [out, in] of this part


@dataclass(frozen=True, slots=True)
class Layout:
    """Every parameter of a base that a variant may change, by canonical Hugging Face name.

    Canonical: "model.layers.0.self_attn.q_proj.weight" with neither prefix changes nor duplicates.
    """

    linears: Mapping[
        str, FusedPart
    ]  # weight name -> place; lm_head included (fused name "lm_head")
    biases: Mapping[str, str]  # bias name -> weight name of its linear
    vectors: Mapping[str, int]  # norm weights: name -> length
    embedding: str  # name of the input embedding [vocab, hidden]
    embedding_shape: tuple[int, int]
    tied: bool  # lm_head reads the input embedding
    bias_allowed: frozenset[str] = (
        frozenset()
    )  # linears whose output may gain a bias in a checkpoint
    vectors_in_float32: bool = False  # the decoder computes with norm weights in float32 (Gemma)


@dataclass(frozen=True, slots=True)
class StagedLinear:
    """A variant's contribution to one fused linear."""

    codec: Codec
    staged: Staged
    reconstruct_from: int | None  # tokens of one chunk; see Codec.rows_to_reconstruct


@dataclass(frozen=True, slots=True)
class EmbeddingDelta:
    """What a variant changes in the input embedding (the output side is ResidentVariant's own).

    `delta` is a packed change of the base's rows (None: unchanged) and `rows` are whole replaced or
    added rows. Rows beyond the base's vocabulary are added tokens.
    """

    row_ids: Tensor  # int64 [k], ascending
    rows: Tensor  # [k, hidden], activation dtype: the full row, not a difference
    delta: Packed | None
    codec: Codec | None


class SharedPart(Hashable, Protocol):
    """What variants hold together: equal for all who do, in memory as long as one of them is."""

    @property
    def nbytes(self) -> int:
        """Its bytes, once for all."""


@dataclass(frozen=True, slots=True)
class ResidentVariant:
    """A variant in memory: immutable, shared by all requests that use this digest."""

    digest: str  # "sha256:<64 hex>"
    vocab_size: int  # logits beyond it are -inf
    linears: Mapping[
        str, StagedLinear
    ]  # fused name -> contribution; absent: the base's output stands
    vectors: Mapping[str, Tensor]  # norm name -> full weight, as the decoder multiplies with it
    embedding: EmbeddingDelta | None
    # [k, hidden], activation dtype: whole replaced or added rows of the output side (when tied, the
    # very tensor of `embedding.rows`); `linears["lm_head"]` holds packed changes of base rows
    lm_head_rows: Tensor | None
    nbytes: int  # its own bytes alone
    lm_head_row_ids: Tensor | None = None  # int64 [k]; None: added tokens, counted from base vocab
    shared: tuple[SharedPart, ...] = ()  # with other variants: masks
