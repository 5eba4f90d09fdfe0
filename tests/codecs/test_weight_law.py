"""The weight law: what a backend adds equals the codec's effective weight, for every codec."""

import pytest
import torch
from torch import Tensor

from tests.kernels.weights import packed_for, unpacked
from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Packed, PlacedPacked
from tsugiki.codecs.masks import MaskCache
from tsugiki_kernels.deltas import Placed
from tsugiki_kernels.interface import KernelBackend, Staged

# eps of the activation dtype: the output is rounded once, factors of lora once each
ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2**-7, torch.float16: 2**-9}
LAYOUTS = (  # one row; a chunk; three variants and rows of none; an empty span between two
    [(0, 1)],
    [(0, 37)],
    [(2, 3), (3, 9), (11, 12)],
    [(0, 4), (4, 4), (4, 7)],
)
OUT, IN, OFFSET, FUSED = 40, 52, 8, 60


def staged_alone(part: PlacedPacked, dtype: torch.dtype, kernels: KernelBackend) -> Staged:
    """One packed linear as a backend reads it."""
    delta = CODECS[part.packed.codec].resident(part, dtype, MaskCache())
    return kernels.stage([Placed(part.offset, delta)])


def expected(x: Tensor, y: Tensor, packed: Packed) -> Tensor:
    zeros = torch.zeros(packed.shape)
    dense = CODECS[packed.codec].effective(zeros, packed)
    change = x.float() @ dense.weight.T + (0 if dense.bias is None else dense.bias)
    result = y.float().clone()
    result[:, OFFSET : OFFSET + packed.shape[0]] += change
    return result


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_fused_output_is_the_product_with_the_effective_weight(recipe, example, kernels, dtype):
    variants = [example(recipe, (OUT, IN), seed=s).packed for s in range(3)]
    staged = [staged_alone(PlacedPacked(OFFSET, p), dtype, kernels) for p in variants]
    for spans in LAYOUTS:
        _holds(variants[: len(spans)], staged[: len(spans)], spans, kernels, dtype)


def _holds(variants, staged, spans, kernels, dtype):
    codec = CODECS[variants[0].codec]
    rows = max(stop for _, stop in spans) + 2
    x = torch.randn(rows, IN, generator=torch.Generator().manual_seed(5)).to(dtype)
    y = torch.randn(rows, FUSED, generator=torch.Generator().manual_seed(6)).to(dtype)
    out = y.clone()
    kernels.apply(x, out, staged, spans)
    untouched = torch.ones(rows, dtype=torch.bool)
    for packed, (start, stop) in zip(variants, spans, strict=True):
        untouched[start:stop] = False
        wanted = expected(x[start:stop], y[start:stop], packed)
        if start == stop:
            continue
        limit = (codec.tolerance + ROUNDING[dtype]) * float(wanted.abs().max())
        assert float((out[start:stop].float() - wanted).abs().max()) <= limit
    assert torch.equal(out[untouched], y[untouched])


def test_a_reconstructed_weight_is_the_effective_weight(recipe, example, kernels):
    packed = example(recipe).packed
    codec = CODECS[packed.codec]
    base = torch.randn(FUSED, IN, generator=torch.Generator().manual_seed(7))
    staged = staged_alone(PlacedPacked(OFFSET, packed), torch.float32, kernels)
    out = torch.empty_like(base)
    kernels.reconstruct(packed_for(kernels, base), staged, out)
    out = unpacked(kernels, out)
    wanted = base.clone()
    wanted[OFFSET : OFFSET + OUT] = codec.effective(base[OFFSET : OFFSET + OUT], packed).weight
    assert torch.allclose(out, wanted, rtol=0, atol=codec.tolerance * float(wanted.abs().max()))


def test_the_bias_of_the_codec_and_that_of_the_module_add_up(recipe, example, kernels):
    packed = example(recipe).packed
    codec = CODECS[packed.codec]
    own = codec.effective(torch.zeros(packed.shape), packed).bias
    extra = torch.linspace(-1, 1, OUT)
    staged = staged_alone(PlacedPacked(OFFSET, packed, extra), torch.float32, kernels)
    found = kernels.bias(staged, FUSED)
    wanted = torch.zeros(FUSED)
    wanted[OFFSET : OFFSET + OUT] = extra + (0 if own is None else own)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_a_zero_module_adds_its_bias_alone(recipe, example, kernels):
    codec = CODECS[example(recipe).packed.codec]
    packed = codec.zero((OUT, IN))
    codec.validate(packed)
    extra = torch.linspace(-1, 1, OUT)
    staged = staged_alone(PlacedPacked(0, packed, extra), torch.float32, kernels)
    out = torch.zeros(3, OUT)
    kernels.apply(torch.randn(3, IN), out, [staged], [(0, 3)])
    assert torch.equal(out, extra.expand(3, OUT))


def test_looked_up_rows_are_rows_of_the_effective_weight(recipe, example):
    packed = example(recipe, (70, 24)).packed
    codec = CODECS[packed.codec]
    dense = codec.effective(torch.zeros(70, 24), packed).weight
    ids = torch.tensor([69, 0, 17, 17, 33])
    limit = codec.tolerance * float(dense.abs().max())
    assert torch.allclose(codec.lookup(packed, ids), dense[ids], rtol=0, atol=limit)
    prepared = codec.prepare_lookup(packed, MaskCache())
    assert torch.equal(codec.lookup(prepared, ids), codec.lookup(packed, ids))
    assert codec.lookup(packed, ids[:0]).shape == (0, 24)
