"""Small resident variants for tests of a step's plan."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs.base import ResidentVariant, StagedLinear
from tsugiki_kernels.deltas import Delta, DenseDelta, LowRankDelta, Placed
from tsugiki_kernels.reference import ReferenceBackend

SHAPES = {"layers.0.qkv": (6, 4), "layers.0.o": (4, 6), "layers.0.down": (4, 8)}
LINEARS = ("layers.0.qkv", "layers.0.o")  # those that the variants here change


def variant(
    *kinds: str, reconstruct_from: int | None = None, vectors: dict[str, Tensor] | None = None
) -> ResidentVariant:
    """One that changes as many linears as kinds are named."""
    codec: Any = SimpleNamespace(name="any")
    return ResidentVariant(
        digest="sha256:" + "0" * 64,
        vocab_size=10,
        linears={
            name: StagedLinear(codec, _staged(kind, SHAPES[name]), reconstruct_from)
            for name, kind in zip(LINEARS, kinds, strict=False)
        },
        vectors=vectors or {},
        embedding=None,
        lm_head_rows=None,
        nbytes=0,
    )


def _staged(kind: str, shape: tuple[int, int]) -> Any:
    outputs, inputs = shape
    delta: Delta = DenseDelta(shape, torch.randn(shape), None)
    if kind == "low rank":
        delta = LowRankDelta(torch.randn(2, inputs), torch.randn(outputs, 2), 1.0, None)
    return ReferenceBackend().stage([Placed(0, delta)])
