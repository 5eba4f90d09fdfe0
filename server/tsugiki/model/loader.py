"""A model directory into a `BaseModel` on its device, one tensor at a time.

Owns: fusing q, k, v and gate, up; dtype and device; the base's identity. Does not know: variants,
requests, the decoder's arithmetic.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs.base import Layout
from tsugiki.codecs.factors import Factors, empty, low_rank_delta
from tsugiki.errors import ConfigError, Unsupported, UnsupportedModel
from tsugiki.model.architecture import Architecture, read_architecture
from tsugiki.model.base_form import (
    BaseForm,
    DenseForm,
    LatticeForm,
    SketchForm,
    codebook_kernels,
    lattice_kernels,
)
from tsugiki.model.caldera import CalderaSettings
from tsugiki.model.caldera import stacked as stacked_lattices
from tsugiki.model.checkpoint import EMBEDDING, LM_HEAD, Checkpoint, open_checkpoint
from tsugiki.model.decoder import Decoder, Weights
from tsugiki.model.fingerprint import base_fingerprint
from tsugiki.model.layout import LinearName, all_linears, layout_of
from tsugiki.model.sketched import SketchSettings, stacked
from tsugiki.model.slab import Slab, room
from tsugiki_kernels.codebooks import IndexMap
from tsugiki_kernels.deltas import LowRankDelta
from tsugiki_kernels.interface import KernelBackend
from tsugiki_kernels.reference import ReferenceBackend

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A resident base: its forward pass and everything a variant is checked against."""

    id: str  # the name under which it is served: the directory's
    path: Path
    config: dict[str, Any]  # raw config.json
    fingerprint: str
    architecture: Architecture
    layout: Layout
    decoder: Decoder
    vectors: Mapping[str, Tensor]  # norms and biases: canonical name -> float32 as stored, CPU

    @property
    def embedding(self) -> Tensor:
        """The input embedding [vocab, hidden], activation dtype, packed."""
        return self.decoder.weights.embedding

    @property
    def dtype(self) -> torch.dtype:
        """The activation dtype."""
        return self.embedding.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def nbytes(self) -> int:
        """Resident bytes of all weights; a tied embedding counts once."""
        weights = self.decoder.weights
        shared = self.embedding.nbytes if self.layout.tied else 0
        tensors = [weights.embedding, *weights.norms.values()]
        linears = sum(form.nbytes for form in weights.linears.values())
        return linears + sum(t.nbytes for t in tensors) - shared

    def vector(self, name: str) -> Tensor:
        """A norm weight or a bias by canonical name: float32 on the CPU, as stored.

        Raises:
            UnsupportedModel: the base has no such vector.
        """
        if name not in self.vectors:
            raise UnsupportedModel(f"{self.path}: no norm or bias is called {name}")
        return self.vectors[name]

    def index_of(self, name: str) -> IndexMap | None:
        """The index map of a weight, by canonical name; None: it is dense."""
        place = self.layout.linears.get(name)
        form = None if place is None else self.decoder.weights.linears[place.fused]
        if place is None or not isinstance(form, SketchForm):
            return None
        return form.weight.index.rows(place.offset, place.offset + place.shape[0])

    def factors_of(self, name: str) -> LowRankDelta | None:
        """The base's own factors of a weight, by canonical name; None: it has none."""
        place = self.layout.linears.get(name)
        form = None if place is None else self.decoder.weights.linears[place.fused]
        if place is None or not isinstance(form, LatticeForm):
            return None
        return form.factors.get(place.offset)


def load_base(
    path: str | Path,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = torch.bfloat16,
    kernels: KernelBackend | None = None,
    cache_dir: Path | None = None,
) -> BaseModel:
    """Load a Hugging Face directory of a supported family.

    `dtype` is that of weights and activations; `kernels` defaults to the reference; the fingerprint
    is cached in `cache_dir`.

    Raises:
        UnsupportedModel: see open_checkpoint and read_architecture; a tensor of the wrong shape.
        Unsupported: kernels that cannot read a sketched base.
        ConfigError: an unknown dtype.
    """
    checkpoint = open_checkpoint(path)
    architecture = read_architecture(checkpoint.config)
    layout = layout_of(architecture)
    _check_shapes(checkpoint, layout)
    kernels = kernels or ReferenceBackend()
    reader = _Reader(checkpoint, layout, torch.device(device), _torch_dtype(dtype), kernels)
    weights = reader.weights(architecture, layout)
    return BaseModel(
        id=checkpoint.path.resolve().name,
        path=checkpoint.path,
        config=checkpoint.config,
        fingerprint=base_fingerprint(checkpoint, cache_dir),
        architecture=architecture,
        layout=layout,
        decoder=Decoder(architecture, weights, kernels),
        vectors=_stored_vectors(checkpoint, layout),
    )


def _torch_dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ConfigError(f"dtype {name!r} is unknown; choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def _stored_vectors(checkpoint: Checkpoint, layout: Layout) -> dict[str, Tensor]:
    names = (*layout.vectors, *layout.biases)
    return {name: checkpoint.tensor(name).to(torch.float32, copy=True) for name in names}


def expected_shapes(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every tensor that a checkpoint of this layout stores."""
    shapes: dict[str, tuple[int, ...]] = {n: part.shape for n, part in layout.linears.items()}
    if layout.tied:
        del shapes[LM_HEAD]
    shapes[layout.embedding] = layout.embedding_shape
    shapes |= {bias: (layout.linears[weight].shape[0],) for bias, weight in layout.biases.items()}
    return shapes | {name: (length,) for name, length in layout.vectors.items()}


def _check_shapes(checkpoint: Checkpoint, layout: Layout) -> None:
    expected = expected_shapes(layout)
    checkpoint.require(sorted(expected))
    for name, shape in expected.items():
        if checkpoint.shape(name) != shape:
            raise UnsupportedModel(
                f"{checkpoint.path}: {name} has shape {list(checkpoint.shape(name))}, "
                f"config.json says {list(shape)}"
            )
    unknown = sorted(set(checkpoint.names()) - set(expected))
    if unknown:
        raise UnsupportedModel(
            f"{checkpoint.path}: {unknown[0]} is no parameter of this architecture "
            f"({len(unknown)} such tensors); it would be ignored"
        )


class _Reader:
    """Copies tensors of a checkpoint to their place."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        layout: Layout,
        device: torch.device,
        dtype: torch.dtype,
        kernels: KernelBackend,
    ) -> None:
        self._checkpoint = checkpoint
        self._kernels = kernels
        self._dtype = dtype
        self._slab = Slab(sum(self._rooms(expected_shapes(layout))), device)

    def _rooms(self, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[int]:
        for name, shape in shapes.items():
            form = self._checkpoint.form
            if form is not None and form.resident and self._checkpoint.is_compressed(name):
                for suffix in form.resident:
                    stored = name + suffix
                    yield room(self._checkpoint.shape(stored), self._checkpoint.dtype(stored))
            else:
                yield room(shape, self._dtype)

    def weights(self, architecture: Architecture, layout: Layout) -> Weights:
        embedding = self._packed([EMBEDDING], layout.embedding_shape)
        linears: dict[str, BaseForm] = {
            linear.fused: self._linear(linear) for linear in all_linears(architecture)
        }
        head = embedding if layout.tied else self._packed([LM_HEAD], layout.embedding_shape)
        linears["lm_head"] = DenseForm(head)
        norms = {name: self._stacked([name], (length,)) for name, length in layout.vectors.items()}
        return Weights(embedding, linears, norms)

    def _linear(self, linear: LinearName) -> BaseForm:
        modules = [module for module, _ in linear.parts]
        rows = sum(rows for _, rows in linear.parts)
        bias = self._stacked([f"{m}.bias" for m in modules], (rows,)) if linear.bias else None
        names = [f"{m}.weight" for m in modules]
        form = self._checkpoint.form
        resident = (
            form is not None and form.resident
        )  # else dense weights are made of what is stored
        if resident and all(map(self._checkpoint.is_compressed, names)):
            return self._compressed(names, bias)
        return DenseForm(self._packed(names, (rows, linear.in_features)), bias)

    def _compressed(self, names: list[str], bias: Tensor | None) -> BaseForm:
        shapes = [self._checkpoint.matrix_shape(name) for name in names]
        asked = [(n, s, self._checkpoint.reader(n)) for n, s in zip(names, shapes, strict=True)]
        match self._checkpoint.form:
            case SketchSettings() as sketch:
                codebook_kernels(self._kernels)
                books = [sketch.weight(*linear) for linear in asked]
                return SketchForm(stacked(books, self._slab.take), bias)
            case CalderaSettings() as caldera:
                lattice_kernels(self._kernels)
                backbones = [caldera.lattice(*linear) for linear in asked]
                slots = [caldera.factors(*linear) for linear in asked]
                weight = stacked_lattices(backbones, self._slab.take)
                return LatticeForm(weight, self._own(shapes, slots), self._kernels, bias)
            case form:
                raise Unsupported(f"{self._checkpoint.path}: a base of form {form} has no loader")

    def _own(
        self, shapes: Sequence[tuple[int, int]], slots: Sequence[Factors | None]
    ) -> dict[int, LowRankDelta]:
        """The factors of fused linears by their first output, in the dtype of activations."""
        offsets = accumulate((rows for rows, _ in shapes), initial=0)
        return {
            at: low_rank_delta(found or empty(shape), self._dtype, None)
            for at, shape, found in zip(offsets, shapes, slots, strict=False)
        }

    def _packed(self, names: list[str], shape: tuple[int, ...]) -> Tensor:
        """A dense weight in the kernels' order."""
        weight = self._stacked(names, shape)
        self._kernels.pack(weight)
        return weight

    def _stacked(self, names: list[str], shape: tuple[int, ...]) -> Tensor:
        """The tensors below each other, copied straight into their final place."""
        out = self._slab.take(shape, self._dtype)
        at = 0
        for name in names:
            part = self._checkpoint.tensor(name)
            out[at : at + len(part)].copy_(part)
            at += len(part)
        return out
