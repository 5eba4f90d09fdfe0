"""Which tensors the modules of a file store, and where each lies among those of its kind.

Owns: the names of a file's tensors (blobs) and the order of the parts within them.
Does not know: headers, bytes, digests (artifact.py), what a part means.

Parts of the same codec, name and dtype are ONE blob, the modules one behind the other in name
order: with 210 linears a table entry for every part would cost a tenth of a small file.
"""

import math
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from tsugiki.codecs import CODECS, container
from tsugiki.codecs.base import Codec
from tsugiki.codecs.metadata import Module
from tsugiki.codecs.options import is_float32
from tsugiki.errors import InvalidArtifact, UserError


class PartPlace(NamedTuple):
    """One part of one module."""

    blob: str
    start: int  # first element within the blob
    numel: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class PartTable:
    """The parts of all modules of a file."""

    def __init__(self, modules: Mapping[str, Module]) -> None:
        """Ask the codecs, once for each kind of module.

        Raises:
            InvalidArtifact: an unknown codec, or options that a codec refuses; names the module.
        """
        self.counts: dict[str, int] = {}  # blob -> elements; a blob without elements is none
        self.places: dict[str, dict[str, PartPlace]] = {}  # module -> part -> place; names ascend
        kinds: dict[Hashable, dict[str, PartPlace]] = {}
        for name in sorted(modules):
            kind = _kind(modules[name])
            found = kinds.get(kind)
            if found is None:
                found = _parts(name, modules[name])
                if kind is not None:
                    kinds[kind] = found
            self.places[name] = {part: self._take(place) for part, place in found.items()}

    def _take(self, place: PartPlace) -> PartPlace:
        if not place.numel:
            return place
        start = self.counts.get(place.blob, 0)
        self.counts[place.blob] = start + place.numel
        return place._replace(start=start)


class StoredTensors(Mapping[str, Tensor]):
    """The parts of one module as views of a file's blobs, made anew whenever one is asked for: a
    variant of hundreds of modules is mostly looked at blob by blob."""

    __slots__ = ("_blobs", "_places")

    def __init__(self, blobs: Mapping[str, Tensor], places: Mapping[str, PartPlace]) -> None:
        self._blobs = blobs
        self._places = places

    def __getitem__(self, part: str) -> Tensor:
        blob, start, numel, dtype, shape = self._places[part]
        if not numel:
            return torch.empty(shape, dtype=dtype)
        flat = self._blobs[blob][start : start + numel]
        return flat if len(shape) == 1 else flat.view(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def known_codec(name: str) -> Codec:
    """The codec of this name.

    Raises:
        InvalidArtifact: there is none.
    """
    if name not in CODECS:
        raise InvalidArtifact(
            f"codec {name!r} is not known to this server; it knows {', '.join(sorted(CODECS))}: "
            "upgrade the server, or compress with one of these"
        )
    return CODECS[name]


def blob_dtype(blob: str) -> str:
    """The word for the dtype in a blob's name, as the header has it."""
    return blob.rpartition(".")[2].upper()


def _parts(name: str, module: Module) -> dict[str, PartPlace]:
    """The parts of a module as if it were the first."""
    try:
        parts = known_codec(module.codec).parts(module.shape, module.options)
    except UserError as error:
        raise type(error)(f"module {name!r}: {error}") from error
    places = {}
    for part, (dtype, shape) in parts.items():
        blob = f"{module.codec}.{part}.{container.DTYPE_NAMES[dtype].lower()}"
        places[part] = PartPlace(blob, 0, math.prod(shape), dtype, shape)
    return places


def _kind(module: Module) -> Hashable | None:
    """What the parts of a module follow from; None where it takes the codec to say what is wrong.

    Of floats a codec asks only that they are finite float32 (see Codec.parts), so modules that
    differ in them alone are of one kind. Types count: true is not 1.
    """
    entries: list[Hashable] = [module.codec, module.shape]
    for key, value in module.options.items():
        if type(value) is float and is_float32(value):
            entries.append(key)
        elif type(value) in (int, str):
            entries.append((key, type(value), value))
        else:
            return None
    return tuple(entries)
