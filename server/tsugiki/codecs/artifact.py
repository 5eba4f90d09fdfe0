"""The variant file: write it, read it, refuse what is not one (docs/format.md).

Owns: the digest, the order of the checks.
Does not know: bases (staging.py checks that a variant fits one), registries, tiers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from torch import Tensor

from tsugiki.codecs import CODECS, container
from tsugiki.codecs.base import Packed, Role
from tsugiki.codecs.checks import all_finite
from tsugiki.codecs.metadata import (
    FORMAT,
    BaseRef,
    Header,
    Module,
    Place,
    Section,
    from_json,
    shared_options,
    to_json,
)
from tsugiki.codecs.part_table import PartTable, StoredTensors, blob_dtype, known_codec
from tsugiki.errors import CorruptArtifact, InvalidArtifact, UserError
from tsugiki_kernels.interface import Allocate, empty_extent

__all__ = [
    "FORMAT",
    "Artifact",
    "ArtifactSpec",
    "BaseRef",
    "Header",
    "Module",
    "Section",
    "file_bytes",
    "read",
    "read_from",
    "read_header",
    "write",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ArtifactSpec:
    """What `write` needs beside the packed modules; shared options and the digest are computed."""

    codec: str  # of the linears; shown in listings
    base: BaseRef
    role: Role = "delta"
    text: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None
    created_by: str = "tsugiki"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified variant file in host memory."""

    header: Header
    modules: Mapping[str, Packed]


def read_header(path: str | Path) -> Header:
    """The header alone; touches no tensor data, so the digest is claimed, not verified.

    Raises:
        CorruptArtifact: not a variant file, truncated, or a header altered after writing.
        InvalidArtifact: an unknown format or codec, or metadata of the wrong form.
    """
    with open(path, "rb") as file:
        return _named(path, lambda: _opened(file).header)


def read(path: str | Path) -> Artifact:
    """The whole variant: digest verified over the very bytes returned, every module validated.

    Raises:
        CorruptArtifact: not a variant file, truncated, or altered after writing.
        InvalidArtifact: an unknown format or codec, options or shapes of no sense, NaN or infinity.
    """
    with open(path, "rb") as file:
        return read_from(file)


def read_from(file: BinaryIO, allocate: Allocate = empty_extent) -> Artifact:
    """As `read`, of an open file. All tensors are views of one that `allocate` gives."""

    def load() -> Artifact:
        opened = _opened(file)
        content = allocate(sum(blob.nbytes for blob in opened.table.blobs))
        _check_digest(opened, container.pieces(file, opened.table, content.numpy().data))
        return Artifact(opened.header, _modules(opened, content))

    return _named(file.name, load)


def write(path: str | Path, spec: ArtifactSpec, modules: Mapping[str, Packed]) -> Header:
    """Write a variant file: whole and durable, or not at all. The same input gives the same bytes.

    Raises:
        InvalidArtifact: a module or a text side that `read` would refuse.
        OSError: the disk refused; no file is left behind.
    """
    parts = PartTable({name: _module(packed) for name, packed in modules.items()})
    stored = _stored(modules, parts)
    contents = {blob: [container.tensor_bytes(t) for t in stored[blob]] for blob in stored}
    blobs = _blobs(parts)
    metadata = _metadata(spec, modules)
    in_name_order = (piece for blob in sorted(contents) for piece in contents[blob])
    digest = container.digest(container.canonical_json(metadata), blobs, in_name_order)
    signed = {**metadata, "digest": digest}
    encoded, _ = container.encode_header(container.canonical_json(signed), blobs)
    from_json(signed, Place(0, 0, 0, blobs))
    with container.replacing(Path(path)) as file:
        file.write(encoded)
        for blob in blobs:
            file.writelines(contents[blob.name])
    return read_header(path)


def file_bytes(spec: ArtifactSpec, modules: Mapping[str, Packed]) -> int:
    """The exact size of the file that `write` would write; of the tensors, only shapes count."""
    blobs = _blobs(PartTable({name: _module(packed) for name, packed in modules.items()}))
    signed = {**_metadata(spec, modules), "digest": "sha256:" + "0" * 64}
    encoded, _ = container.encode_header(container.canonical_json(signed), blobs)
    return len(encoded) + sum(blob.nbytes for blob in blobs)


def _named(path: str | Path, action: Callable[[], T]) -> T:
    """Run `action`; its errors name the file."""
    try:
        return action()
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


class _Opened(NamedTuple):
    """A file whose header was read and understood."""

    table: container.Table
    metadata: Mapping[str, Any]  # as parsed
    header: Header
    parts: PartTable


def _opened(file: BinaryIO) -> _Opened:
    table = container.read_table(file)
    metadata = container.parse_json(table.metadata)
    place = Place(table.file_bytes, table.data_start, table.padding, table.blobs)
    header = from_json(metadata, place)
    known_codec(header.codec)
    parts = PartTable(header.modules)
    if _blobs(parts) != table.blobs:
        found = {blob.name: blob.count for blob in table.blobs}
        raise InvalidArtifact(f"the tensors are {found}, but the modules need {parts.counts}")
    return _Opened(table, metadata, header, parts)


def _blobs(parts: PartTable) -> tuple[container.Blob, ...]:
    return container.place({blob: (blob_dtype(blob), n) for blob, n in parts.counts.items()})


def _check_digest(opened: _Opened, contents: Iterator[bytes | memoryview]) -> None:
    unsigned = {key: value for key, value in opened.metadata.items() if key != "digest"}
    found = container.digest(container.canonical_json(unsigned), opened.table.blobs, contents)
    if found != opened.header.digest:
        raise CorruptArtifact(
            f"the digest of the content is {found} but the header says {opened.header.digest}: "
            "the file was altered or damaged; copy or upload it again"
        )


def _modules(opened: _Opened, content: Tensor) -> dict[str, Packed]:
    """The modules as views of the content, after every value of it was looked at."""
    blobs = {
        blob.name: content[blob.begin : blob.begin + blob.nbytes].view(container.DTYPES[blob.dtype])
        for blob in opened.table.blobs
    }
    finite = all(map(all_finite, blobs.values()))
    modules: dict[str, Packed] = {}
    for name, places in opened.parts.places.items():
        module = opened.header.modules[name]
        tensors = StoredTensors(blobs, places)
        packed = Packed(module.codec, module.shape, module.options, tensors, name)
        if not (finite and CODECS[module.codec].sound_if_finite(module.options)):
            _validated(name, packed)
        modules[name] = packed
    return modules


def _validated(name: str, packed: Packed) -> Packed:
    _named(f"module {name!r}", lambda: known_codec(packed.codec).validate(packed))
    return packed


def _stored(modules: Mapping[str, Packed], parts: PartTable) -> dict[str, list[Tensor]]:
    """The tensors behind each other in every blob, modules in name order."""
    stored: dict[str, list[Tensor]] = {}
    for name, places in parts.places.items():
        packed = _validated(name, modules[name])
        for part, place in places.items():
            if place.numel:
                stored.setdefault(place.blob, []).append(packed.tensors[part])
    return stored


def _module(packed: Packed) -> Module:
    return Module(packed.codec, tuple(packed.shape), dict(packed.options))


def _metadata(spec: ArtifactSpec, packed: Mapping[str, Packed]) -> dict[str, Any]:
    """The metadata object without its digest."""
    modules = {name: _module(p) for name, p in packed.items()}
    shared = shared_options(spec.codec, modules)
    return {
        "format": FORMAT,
        "codec": spec.codec,
        "role": spec.role,
        "options": shared,
        "base": asdict(spec.base),
        "modules": {
            name: to_json(module, shared if module.codec == spec.codec else {})
            for name, module in modules.items()
        },
        "text": spec.text,
        "probe": spec.probe,
        "created_by": spec.created_by,
        "provenance": dict(spec.provenance),
        "report": dict(spec.report),
    }
