"""Packed weights (src/weight.h): the order in which the kernels read a dense weight.

Owns: packing in place, its inverse, and looking rows up. Knows nothing of the arithmetic.
"""

import ctypes
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from tsugiki_kernels.check import ACTIVATIONS, check_column, check_on_cpu, check_tensor
from tsugiki_kernels.cpu.parts import DTYPES
from tsugiki_kernels.cpu.program import Operation
from tsugiki_kernels.cpu.records import Fields
from tsugiki_kernels.errors import BadArgument

GROUP = 16  # outputs
_I64, _I32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p


class Lookup(ctypes.Structure):
    """src/weight.cpp: Lookup."""

    _fields_: ClassVar[Fields] = (
        ("weight", _PTR),
        ("outputs", _I64),
        ("inputs", _I64),
        ("index", _PTR),
        ("rows", _I64),
        ("out", _PTR),
        ("dtype", _I32),
        ("threads", _I32),
    )


def pack(weight: Tensor) -> None:
    """Put a weight [out, in], contiguous, into the kernels' order.

    Raises:
        BadArgument: another dtype or layout.
    """
    if weight.ndim != 2:
        raise BadArgument(f"weight: expected [out, in], found {tuple(weight.shape)}")
    check_tensor("weight", weight, ACTIVATIONS, tuple(weight.shape))
    for plain, packed in _pieces(weight, weight.clone()):
        packed.copy_(plain)


def unpacked(weight: Tensor) -> Tensor:
    """A packed weight as it was."""
    out = torch.empty_like(weight)
    for plain, packed in _pieces(weight, out):
        plain.copy_(packed)
    return out


def _pieces(packed: Tensor, plain: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of equal shape of the two forms, which together are all of them."""
    outputs, inputs = plain.shape
    pair = 2 if plain.dtype == torch.bfloat16 else 1
    paired, whole = inputs // pair * pair, outputs // GROUP * GROUP
    flat = packed.view(-1)
    for first, last, lanes in ((0, whole, GROUP), (whole, outputs, outputs - whole)):
        if first == last:
            continue
        groups = (last - first) // lanes
        mine = flat[first * inputs : last * inputs].view(groups, lanes * inputs)
        rows = plain[first:last].view(groups, lanes, inputs)
        steps = rows[:, :, :paired].view(groups, lanes, paired // pair, pair).transpose(1, 2)
        yield steps, mine[:, : lanes * paired].view(steps.shape)
        yield rows[:, :, paired:].transpose(1, 2), mine[:, lanes * paired :].view(groups, -1, lanes)


def lookup(weight: Tensor, index: Tensor, out: Tensor) -> Operation:
    """See KernelBackend.lookup.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    outputs, inputs = weight.shape
    check_tensor("weight", weight, ACTIVATIONS, (outputs, inputs))
    check_column("index", index, torch.int64, len(index))
    check_tensor("out", out, (weight.dtype,), (len(index), inputs))
    check_on_cpu(weight=weight, index=index, out=out)
    call = Lookup(
        weight.data_ptr(),
        outputs,
        inputs,
        index.data_ptr(),
        len(index),
        out.data_ptr(),
        DTYPES[weight.dtype],
        torch.get_num_threads(),
    )
    refusal = f"index: beyond the {outputs} rows of the weight"
    return Operation("tsugiki_lookup", call, refusal, kept=(weight, index, out))
