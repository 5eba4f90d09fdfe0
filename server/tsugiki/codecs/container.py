"""The bytes of a variant file: safetensors with exactly one legal encoding of any content.

Owns: the header, the order and place of tensors, refusal of everything that is not byte for byte
what `encode_header` would have written (that is how a flipped byte of a header is found).
Does not know: what the metadata or the tensors mean (artifact.py).
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from tsugiki.errors import CorruptArtifact

METADATA_KEY = "tsugiki"
MAX_HEADER_BYTES = 16 * 1024**2  # parsed, it may take fifty times as much memory
ALIGNMENT = 8  # of the tensor data within the file, as the stock library has it
CHUNK_BYTES = 1024**2
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Blob:
    """One tensor of the file: one-dimensional, at a place that follows from its neighbours."""

    name: str
    dtype: str  # a key of DTYPES
    count: int  # elements
    begin: int  # byte offset from the end of the header

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class Table:
    """What the header of a file says, before anything in it is believed."""

    metadata: str  # the text of the one metadata entry
    blobs: tuple[Blob, ...]  # in file order
    data_start: int  # 8 + header length
    padding: int  # spaces at the end of the header

    @property
    def file_bytes(self) -> int:
        """The only length this file may have."""
        return self.data_start + sum(blob.nbytes for blob in self.blobs)


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, no escapes beyond JSON's own; floats as Python's `repr`.

    Raises:
        ValueError: a NaN or an infinity.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def parse_json(text: str) -> Any:
    """The value of canonical JSON.

    Raises:
        CorruptArtifact: anything that `canonical_json` would not have written: other spacing or
            order, duplicate keys, NaN, nesting too deep.
    """
    try:
        value = json.loads(text)
        again = canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(f"the header is not JSON: {error}") from error
    if again != text:
        raise CorruptArtifact("the header is not canonical JSON: it was altered after writing")
    return value


def place(counts: Mapping[str, tuple[str, int]]) -> tuple[Blob, ...]:
    """Blobs in file order (wider elements first, then by name), one behind the other.

    `counts` maps a name to (dtype, elements).
    """
    order = sorted(counts, key=lambda name: (-DTYPES[counts[name][0]].itemsize, name))
    blobs: list[Blob] = []
    begin = 0
    for name in order:
        dtype, count = counts[name]
        blobs.append(Blob(name, dtype, count, begin))
        begin += blobs[-1].nbytes
    return tuple(blobs)


def encode_header(metadata: str, blobs: Sequence[Blob]) -> tuple[bytes, int]:
    """The 8 bytes of length and the header, padded with spaces; and the number of spaces."""
    entries = [_pair("__metadata__", {METADATA_KEY: metadata})]
    for blob in blobs:
        span = [blob.begin, blob.begin + blob.nbytes]
        entries.append(
            _pair(blob.name, {"dtype": blob.dtype, "shape": [blob.count], "data_offsets": span})
        )
    text = ("{" + ",".join(entries) + "}").encode()
    padding = -len(text) % ALIGNMENT
    length = len(text) + padding
    return length.to_bytes(8, "little") + text + b" " * padding, padding


def _pair(key: str, value: Any) -> str:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return f"{json.dumps(key, ensure_ascii=False)}:{body}"


def read_table(file: BinaryIO) -> Table:
    """Parse and verify the header of an open file; reads no tensor data.

    Raises:
        CorruptArtifact: with the value found and the value expected.
    """
    file_bytes = file.seek(0, os.SEEK_END)
    file.seek(0)
    raw = _read_header_bytes(file, file_bytes)
    metadata, counts = _parse_header(raw)
    blobs = place(counts)
    encoded, padding = encode_header(metadata, blobs)
    if encoded[8:] != raw:
        raise CorruptArtifact(
            "the file's header is not the canonical encoding of its content: it was altered or "
            "written by other software; compress again or copy the original"
        )
    table = Table(metadata, blobs, len(encoded), padding)
    if file_bytes != table.file_bytes:
        raise CorruptArtifact(
            f"the file has {file_bytes} bytes but its header describes {table.file_bytes}: "
            "it is truncated or has bytes appended; copy or upload it again"
        )
    return table


def _read_header_bytes(file: BinaryIO, file_bytes: int) -> bytes:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CorruptArtifact(f"a file of {len(prefix)} bytes is too short for a variant file")
    length = int.from_bytes(prefix, "little")
    if length > min(MAX_HEADER_BYTES, file_bytes - 8):
        raise CorruptArtifact(
            f"header length {length} exceeds the file ({file_bytes} bytes) or the limit of "
            f"{MAX_HEADER_BYTES}: this is not a safetensors file, or it is truncated"
        )
    raw = file.read(length)
    if len(raw) != length:
        raise CorruptArtifact("the file shrank while it was being read; copy or upload it again")
    return raw


def _parse_header(raw: bytes) -> tuple[str, dict[str, tuple[str, int]]]:
    try:
        header = json.loads(raw.decode())
        json.dumps(header, ensure_ascii=False).encode()  # refuses escaped lone surrogates
    except (ValueError, RecursionError) as error:
        raise CorruptArtifact(f"the header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise CorruptArtifact("the header is not a JSON object")
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get(METADATA_KEY), str):
        raise CorruptArtifact(
            f"the header has no metadata entry {METADATA_KEY!r}: a safetensors file, but not a "
            "variant; make one with 'tsugiki compress'"
        )
    return metadata[METADATA_KEY], {name: _entry(name, value) for name, value in header.items()}


def _entry(name: str, value: Any) -> tuple[str, int]:
    dtype = value.get("dtype") if isinstance(value, dict) else None
    shape = value.get("shape") if isinstance(value, dict) else None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CorruptArtifact(f"tensor {name!r} has dtype {dtype!r}; known: {', '.join(DTYPES)}")
    if not (isinstance(shape, list) and len(shape) == 1 and type(shape[0]) is int and shape[0] > 0):
        raise CorruptArtifact(f"tensor {name!r} has shape {shape!r}; expected one positive length")
    return dtype, shape[0]


def digest(metadata: str, blobs: Sequence[Blob], contents: Iterator[bytes | memoryview]) -> str:
    """sha256 over the metadata without digest, the tensor table, and the bytes in name order.

    `contents` yields the bytes of the blobs in name order, in pieces of any length.
    """
    state = hashlib.sha256(metadata.encode())
    by_name = sorted(blobs, key=lambda blob: blob.name)
    state.update(canonical_json([[b.name, b.dtype, [b.count]] for b in by_name]).encode())
    for piece in contents:
        state.update(piece)
    return "sha256:" + state.hexdigest()


def pieces(file: BinaryIO, table: Table, into: memoryview) -> Iterator[memoryview]:
    """The bytes of all blobs in name order, a chunk at a time; `into` keeps them in file order.

    What is kept is what was yielded: a file that changes underneath is found by the digest.
    """
    for blob in sorted(table.blobs, key=lambda blob: blob.name):
        file.seek(table.data_start + blob.begin)
        for start in range(0, blob.nbytes, CHUNK_BYTES):
            size = min(CHUNK_BYTES, blob.nbytes - start)
            place = blob.begin + start
            piece = into[place : place + size]
            if file.readinto(piece) != size:  # type: ignore[attr-defined]
                raise CorruptArtifact("the file shrank while it was being read; copy it again")
            yield piece


def tensor_bytes(tensor: Tensor) -> bytes:
    """The little-endian bytes of a tensor, row-major."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole, durable, or not at all.

    Written beside it under a temporary name, synced, renamed, and the directory synced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
