"""Real variant files of a few KB for a base of three parameters."""

from pathlib import Path

import torch

from tsugiki.codecs import CODECS
from tsugiki.codecs.artifact import ArtifactSpec, BaseRef, write
from tsugiki.codecs.base import FusedPart, Layout
from tsugiki.variants.version import BaseIdentity

QUERY, KEY, NORM = "layers.0.q_proj.weight", "layers.0.k_proj.weight", "norm.weight"
SHAPE = (16, 32)
FINGERPRINT = "sha256:" + "ab" * 32
LAYOUT = Layout(
    linears={
        QUERY: FusedPart("layers.0.qkv", 0, SHAPE),
        KEY: FusedPart("layers.0.qkv", 16, SHAPE),
    },
    biases={},
    vectors={NORM: 32},
    embedding="embed.weight",
    embedding_shape=(64, 32),
    tied=True,
)
IDENTITY = BaseIdentity(FINGERPRINT, LAYOUT, 64)


def write_tiny(path: Path, seed: int) -> str:
    """A file of this seed; returns its digest."""
    generator = torch.Generator().manual_seed(seed)
    modules = {}
    for name in (QUERY, KEY):
        base = torch.randn(SHAPE, generator=generator)
        tuned = base + 0.1 * torch.randn(SHAPE, generator=generator)
        options = {"alpha": 4, "name": name}
        modules[name] = CODECS["deltadq"].compress(base, tuned, None, options)
    norm = 1 + 0.1 * torch.randn(32, generator=generator)
    modules[NORM] = CODECS["dense"].compress(torch.ones(32), norm, None, {"name": NORM})
    spec = ArtifactSpec(codec="deltadq", base=BaseRef("tiny", "Llama", FINGERPRINT))
    return write(path, spec, modules).digest
