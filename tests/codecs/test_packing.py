"""Bit order and padding of packed codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tsugiki.codecs.packing import pack, packed_bytes, unpack


@settings(max_examples=80, deadline=None)
@given(bits=st.integers(1, 8), count=st.integers(1, 40), seed=st.integers(0, 999))
def test_codes_come_back_and_lie_least_significant_bit_first(bits, count, seed):
    codes = torch.randint(0, 2**bits, (3, count), generator=torch.Generator().manual_seed(seed))
    packed = pack(codes.to(torch.uint8), bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes.to(torch.uint8))
    for row, data in zip(codes.tolist(), packed.tolist(), strict=True):
        number = sum(code << (i * bits) for i, code in enumerate(row))
        assert bytes(data) == number.to_bytes(packed_bytes(count, bits), "little")


@pytest.mark.parametrize(
    ("bits", "expected"), [(1, [0b101]), (3, [0b01000001, 0b0]), (8, [1, 0, 1])]
)
def test_one_zero_one_as_bytes(bits, expected):
    padded = expected + [0] * (packed_bytes(3, bits) - len(expected))
    assert pack(torch.tensor([[1, 0, 1]], dtype=torch.uint8), bits)[0].tolist() == padded
