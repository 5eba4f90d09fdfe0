"""Real variant files for a base of three parameters, and ways to forge them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs import CODECS, container
from tsugiki.codecs.artifact import ArtifactSpec, BaseRef, write
from tsugiki.codecs.base import FusedPart, Layout, Packed
from tsugiki.variants.version import BaseIdentity

Q, K, NORM = "layers.0.q_proj.weight", "layers.0.k_proj.weight", "norm.weight"
SHAPE = (16, 32)
LAYOUT = Layout(
    linears={
        Q: FusedPart("layers.0.qkv", 0, SHAPE),
        K: FusedPart("layers.0.qkv", 16, SHAPE),
    },
    biases={},
    vectors={NORM: 32},
    embedding="embed.weight",
    embedding_shape=(64, 32),
    tied=True,
)
FINGERPRINT = "sha256:" + "ab" * 32
IDENTITY = BaseIdentity(FINGERPRINT, LAYOUT, 64)


def base_vector(name: str) -> Tensor:
    """The base's norm."""
    return torch.ones(LAYOUT.vectors[name])


def packed_modules(
    seed: int = 0, codec: str = "deltadq", shape: tuple[int, int] = SHAPE
) -> dict[str, Packed]:
    """Two linears and a norm, random by seed."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name in (Q, K):
        base = torch.randn(shape, generator=generator)
        tuned = base + 0.1 * torch.randn(shape, generator=generator)
        options = {"deltadq": {"alpha": 4}, "bitdelta": {}}[codec]
        modules[name] = CODECS[codec].compress(base, tuned, None, {**options, "name": name})
    norm = 1 + 0.1 * torch.randn(32, generator=generator)
    modules[NORM] = CODECS["dense"].compress(torch.ones(32), norm, None, {"name": NORM})
    return modules


def write_variant(
    path: Path,
    seed: int = 0,
    *,
    fingerprint: str = FINGERPRINT,
    modules: dict[str, Packed] | None = None,
) -> str:
    """A valid file; returns its digest."""
    spec = ArtifactSpec(codec="deltadq", base=BaseRef("tiny", "Llama", fingerprint))
    return write(path, spec, packed_modules(seed) if modules is None else modules).digest


def forge(
    path: Path,
    metadata: Callable[[dict[str, Any]], object] = lambda fields: None,
    data: Callable[[bytearray, dict[str, container.Blob]], object] = lambda content, blobs: None,
) -> None:
    """Alter a valid file and sign it again: every digest fits, only the content is wrong."""
    with open(path, "rb") as file:
        table = container.read_table(file)
    content = bytearray(path.read_bytes()[table.data_start :])
    fields = json.loads(table.metadata)
    del fields["digest"]
    metadata(fields)
    data(content, {blob.name: blob for blob in table.blobs})
    in_name_order = sorted(table.blobs, key=lambda blob: blob.name)
    pieces = (bytes(content[b.begin : b.begin + b.nbytes]) for b in in_name_order)
    digest = container.digest(container.canonical_json(fields), table.blobs, pieces)
    signed = container.canonical_json({**fields, "digest": digest})
    header, _ = container.encode_header(signed, table.blobs)
    path.write_bytes(header + content)
