"""Codes of 1 to 8 bits in bytes: least significant bit first, rows padded to whole bytes.

Owns: the bit order of the file. Does not know: what a code means.
"""

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes of `count` codes of `bits` bits."""
    return (count * bits + 7) // 8


def pack(codes: Tensor, bits: int) -> Tensor:
    """uint8 [rows, n] with values below 2^bits -> uint8 [rows, ceil(n * bits / 8)].

    Code i of a row occupies the bits i * bits .. i * bits + bits - 1 of the row, where bit b is bit
    b % 8 (counted from the least significant) of byte b // 8. Unused bits are 0.
    """
    rows, count = codes.shape
    if bits == 8:
        return codes.contiguous()
    period = 8 // bits if 8 % bits == 0 else 8  # codes that together fill whole bytes
    periods = -(-count // period)
    padded = torch.nn.functional.pad(codes, (0, -count % period)).view(rows, periods, period)
    word = torch.zeros(padded.shape[:2], dtype=torch.int64, device=codes.device)
    for i in range(period):
        word |= padded[:, :, i].long() << (i * bits)
    width = period * bits // 8
    spread = torch.stack([(word >> (8 * b)) & 255 for b in range(width)], dim=2)
    return spread.flatten(1)[:, : packed_bytes(count, bits)].to(torch.uint8).contiguous()


def unpack(packed: Tensor, bits: int, count: int) -> Tensor:
    """The inverse of `pack`: uint8 [rows, ceil(count * bits / 8)] -> uint8 [rows, count]."""
    if bits == 8:
        return packed[:, :count].contiguous()
    rows = packed.shape[0]
    if 8 % bits == 0:
        mask = (1 << bits) - 1
        shifted = [(packed >> (i * bits)) & mask for i in range(8 // bits)]
        return torch.stack(shifted, dim=2).flatten(1)[:, :count].contiguous()
    periods = -(-count // 8)
    padded = torch.nn.functional.pad(packed, (0, periods * bits - packed.shape[1]))
    padded = padded.view(rows, periods, bits)
    word = torch.zeros(padded.shape[:2], dtype=torch.int64, device=packed.device)
    for b in range(bits):
        word |= padded[:, :, b].long() << (8 * b)
    codes = [(word >> (i * bits)) & ((1 << bits) - 1) for i in range(8)]
    return torch.stack(codes, dim=2).flatten(1)[:, :count].to(torch.uint8).contiguous()
