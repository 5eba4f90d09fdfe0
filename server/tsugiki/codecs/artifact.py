"""The variant file: write it, read it, refuse what is not one (docs/format.md).

Owns: the concatenation of packed modules into tensors, the digest, the order of the checks.
Does not know: bases (staging.py checks that a variant fits one), registries, tiers.

Parts of the same codec, name and dtype are stored as ONE tensor, the modules one behind the other
in name order: with 210 linears a table entry for every part would cost a tenth of a small file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch
from torch import Tensor

from tsugiki.codecs import CODECS, container
from tsugiki.codecs.base import Codec, Packed, Part, Role
from tsugiki.codecs.memory import Allocate, host_memory
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
from tsugiki.errors import CorruptArtifact, InvalidArtifact, UserError

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
    "verify",
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
        return _named(path, lambda: _header(container.read_table(file)))


def verify(path: str | Path) -> Header:
    """The header, after the digest of all bytes was checked in constant memory.

    Raises:
        CorruptArtifact, InvalidArtifact: as `read_header`; and a digest that does not match.
    """

    def check() -> Header:
        table = container.read_table(file)
        header = _header(table)
        _check_digest(header, table, container.pieces(file, table, into=None))
        return header

    with open(path, "rb") as file:
        return _named(path, check)


def read(path: str | Path) -> Artifact:
    """The whole variant: digest verified over the very bytes returned, every module validated.

    Raises:
        CorruptArtifact: not a variant file, truncated, or altered after writing.
        InvalidArtifact: an unknown format or codec, options or shapes of no sense, NaN or infinity.
    """
    with open(path, "rb") as file:
        return read_from(file)


def read_from(file: BinaryIO, allocate: Allocate = host_memory) -> Artifact:
    """As `read`, of an open file. All tensors are views of one that `allocate` gives."""

    def load() -> Artifact:
        table = container.read_table(file)
        header = _header(table)
        content = allocate(sum(blob.nbytes for blob in table.blobs))
        _check_digest(header, table, container.pieces(file, table, content.numpy().data))
        return Artifact(header, _modules(header, content))

    return _named(file.name, load)


def write(path: str | Path, spec: ArtifactSpec, modules: Mapping[str, Packed]) -> Header:
    """Write a variant file: whole and durable, or not at all. The same input gives the same bytes.

    Raises:
        InvalidArtifact: a module or a text side that `read` would refuse.
        OSError: the disk refused; no file is left behind.
    """
    stored = _stored(modules)
    contents = {blob: [container.tensor_bytes(t) for t in stored[blob]] for blob in stored}
    blobs = container.place(
        {blob: (_blob_dtype(blob), sum(t.numel() for t in stored[blob])) for blob in stored}
    )
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
    counts = _blob_counts({name: _module(packed) for name, packed in modules.items()})
    blobs = container.place({blob: (_blob_dtype(blob), count) for blob, count in counts.items()})
    signed = {**_metadata(spec, modules), "digest": "sha256:" + "0" * 64}
    encoded, _ = container.encode_header(container.canonical_json(signed), blobs)
    return len(encoded) + sum(blob.nbytes for blob in blobs)


def _named(path: str | Path, action: Callable[[], T]) -> T:
    """Run `action`; its errors name the file."""
    try:
        return action()
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def _header(table: container.Table) -> Header:
    place = Place(table.file_bytes, table.data_start, table.padding, table.blobs)
    header = from_json(container.parse_json(table.metadata), place)
    _codec(header.codec)
    counts = {b: (_blob_dtype(b), count) for b, count in _blob_counts(header.modules).items()}
    if container.place(counts) != table.blobs:
        found = {blob.name: blob.count for blob in table.blobs}
        expected = {name: count for name, (_, count) in counts.items()}
        raise InvalidArtifact(f"the tensors are {found}, but the modules need {expected}")
    return header


def _check_digest(
    header: Header, table: container.Table, contents: Iterator[bytes | memoryview]
) -> None:
    metadata = container.parse_json(table.metadata)
    del metadata["digest"]
    found = container.digest(container.canonical_json(metadata), table.blobs, contents)
    if found != header.digest:
        raise CorruptArtifact(
            f"the digest of the content is {found} but the header says {header.digest}: "
            "the file was altered or damaged; copy or upload it again"
        )


def _codec(name: str) -> Codec:
    if name not in CODECS:
        raise InvalidArtifact(
            f"codec {name!r} is not known to this server; it knows {', '.join(sorted(CODECS))}: "
            "upgrade the server, or compress with one of these"
        )
    return CODECS[name]


def _parts(module: Module) -> Mapping[str, Part]:
    return _codec(module.codec).parts(module.shape, module.options)


def _blob_name(codec: str, part: str, dtype: torch.dtype) -> str:
    return f"{codec}.{part}.{container.DTYPE_NAMES[dtype].lower()}"


def _blob_dtype(blob: str) -> str:
    return blob.rpartition(".")[2].upper()


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for length in shape:
        count *= length
    return count


def _blob_counts(modules: Mapping[str, Module]) -> dict[str, int]:
    """Elements of every tensor of the file; parts without elements need none."""
    counts: dict[str, int] = {}
    for name in sorted(modules):
        module = _checked(name, modules[name])
        for part, (dtype, shape) in _parts(module).items():
            blob = _blob_name(module.codec, part, dtype)
            counts[blob] = counts.get(blob, 0) + _numel(shape)
    return {blob: count for blob, count in counts.items() if count}


def _checked(name: str, module: Module) -> Module:
    """The module, after its codec accepted its options; errors name it."""
    _named(f"module {name!r}", lambda: _parts(module))
    return module


def _modules(header: Header, content: Tensor) -> dict[str, Packed]:
    flat = {
        blob.name: content[blob.begin : blob.begin + blob.nbytes].view(container.DTYPES[blob.dtype])
        for blob in header.tensors
    }
    taken = dict.fromkeys(flat, 0)
    modules: dict[str, Packed] = {}
    for name in sorted(header.modules):
        module = header.modules[name]
        tensors: dict[str, Tensor] = {}
        for part, (dtype, shape) in _parts(module).items():
            blob, count = _blob_name(module.codec, part, dtype), _numel(shape)
            if count == 0:
                tensors[part] = torch.empty(shape, dtype=dtype)
                continue
            start = taken[blob]
            tensors[part] = flat[blob][start : start + count].view(shape)
            taken[blob] = start + count
        modules[name] = _validated(
            name, Packed(module.codec, module.shape, module.options, tensors, name)
        )
    return modules


def _validated(name: str, packed: Packed) -> Packed:
    _named(f"module {name!r}", lambda: _codec(packed.codec).validate(packed))
    return packed


def _stored(modules: Mapping[str, Packed]) -> dict[str, list[Tensor]]:
    """The tensors behind each other in every blob, modules in name order."""
    stored: dict[str, list[Tensor]] = {}
    for name in sorted(modules):
        packed = _validated(name, modules[name])
        for part, (dtype, shape) in _parts(_module(packed)).items():
            if _numel(shape):
                blob = _blob_name(packed.codec, part, dtype)
                stored.setdefault(blob, []).append(packed.tensors[part])
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
