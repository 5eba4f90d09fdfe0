"""Calls into src/sampling.cpp and src/logprobs.cpp: argument checks and the C structs of one call.

Owns: the mirror of its structs. Knows nothing of the arithmetic.
"""

import ctypes
from typing import ClassVar

import torch
from torch import Tensor

from tsugiki_kernels.cpu.parts import DTYPES
from tsugiki_kernels.cpu.records import Fields
from tsugiki_kernels.operands import Draws, Logprobs
from tsugiki_kernels.sampling import check_draws, check_rows, check_tokens

_I64, _I32, _PTR = ctypes.c_int64, ctypes.c_int32, ctypes.c_void_p


class LogitRows(ctypes.Structure):
    """src/logits.h: Logits."""

    _fields_: ClassVar[Fields] = (
        ("data", _PTR),
        ("stride", _I64),
        ("width", _I64),
        ("dtype", _I32),
        ("threads", _I32),
        ("rows", _PTR),
        ("count", _I64),
    )


class SamplingCall(ctypes.Structure):
    """src/sampling.cpp: Sampling."""

    _fields_: ClassVar[Fields] = (
        ("logits", LogitRows),
        ("temperature", _PTR),
        ("top_k", _PTR),
        ("top_p", _PTR),
        ("min_p", _PTR),
        ("points", _PTR),
        ("tokens", _PTR),
    )


class LogprobsCall(ctypes.Structure):
    """src/logprobs.cpp: Logprobs."""

    _fields_: ClassVar[Fields] = (
        ("logits", LogitRows),
        ("tokens", _PTR),
        ("logprobs", _PTR),
        ("ranks", _PTR),
        ("width", _I64),
        ("top_logprobs", _PTR),
        ("top_ids", _PTR),
    )


def sample(library: ctypes.CDLL, logits: Tensor, draws: Draws) -> Tensor:
    """See KernelBackend.sample.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    check_draws(logits, draws)
    tokens = torch.empty(len(draws.rows), dtype=torch.int64)
    call = SamplingCall(
        _rows(logits, draws.rows),
        draws.temperature.data_ptr(),
        draws.top_k.data_ptr(),
        draws.top_p.data_ptr(),
        draws.min_p.data_ptr(),
        draws.points.data_ptr(),
        tokens.data_ptr(),
    )
    library.tsugiki_sample(ctypes.byref(call))
    return tokens


def logprobs(
    library: ctypes.CDLL, logits: Tensor, rows: Tensor, token_ids: Tensor, width: int
) -> Logprobs:
    """See KernelBackend.logprobs.

    Raises:
        BadArgument: naming the argument that breaks the contract.
    """
    count = len(rows)
    check_rows(logits, rows)
    check_tokens(logits, token_ids, count, width)
    found = Logprobs(
        logprobs=torch.empty(count),
        ranks=torch.empty(count, dtype=torch.int64),
        top_logprobs=torch.empty(count, width),
        top_ids=torch.empty(count, width, dtype=torch.int64),
    )
    call = LogprobsCall(
        _rows(logits, rows),
        token_ids.data_ptr(),
        found.logprobs.data_ptr(),
        found.ranks.data_ptr(),
        width,
        found.top_logprobs.data_ptr(),
        found.top_ids.data_ptr(),
    )
    library.tsugiki_logprobs(ctypes.byref(call))
    return found


def _rows(logits: Tensor, rows: Tensor) -> LogitRows:
    return LogitRows(
        logits.data_ptr(),
        logits.stride(0),
        logits.shape[1],
        DTYPES[logits.dtype],
        torch.get_num_threads(),
        rows.data_ptr(),
        len(rows),
    )
