"""Packing a change as tensor train and sparse part.

Owns: the options that a user asks with, and the order of the fit: the train first, then the
largest entries of what it leaves. Does not know: how a packed module is read (saten.py), how bytes
are shared out between modules (compress/).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs import saten_sparse, saten_values
from tsugiki.codecs.base import ModuleStats, Options, Packed
from tsugiki.codecs.checks import check_linear
from tsugiki.codecs.options import choice, integer, number, only
from tsugiki.codecs.quantize import difference
from tsugiki.codecs.saten_form import PATTERNS, SparseForm, TrainForm, read_modes, written_modes
from tsugiki.codecs.saten_train import (
    Modes,
    TensorTrain,
    balanced,
    best_modes,
    candidates,
    decompose,
    largest_ranks,
    low_rank_modes,
    shape_of,
)
from tsugiki.errors import CompressionRefused
from tsugiki_kernels.deltas import MAX_STAGES

DEFAULTS: dict[str, Any] = {
    "modes": "low-rank",
    "rank": 8,
    "relative_error": 0.0,
    "pattern": "free",
    "density": 0.02,
    "core_bits": 8,
    "value_bits": 4,
    "rows_per_step": 64,
}
NAMED = ("low-rank", "matrix", "vector", "auto")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for, for one matrix."""

    modes: Modes
    rank: int  # of every bond at most; 0: no train
    relative_error: float  # of the train; 0: the rank decides
    pattern: str
    kept: int
    core_bits: int
    value_bits: int
    rows_per_step: int


def fit(base: Tensor, tuned: Tensor, stats: ModuleStats | None, options: Options) -> Packed:
    """See `Codec.compress`. Options: DEFAULTS and `name`; rank 0 is no train, density 0 no sparse
    part. With statistics an entry counts by E[x^2] of its column when places are chosen.

    Raises:
        CompressionRefused: an option or a shape that saten cannot carry.
    """
    only(options, (*DEFAULTS, "name"), CompressionRefused)
    name = str(options.get("name", ""))
    change = difference(base, tuned, name)
    wanted = wanted_for(change, options)
    importance = None if stats is None else stats.second_moment.float().clamp_min(1e-12)
    return packed_as(change, wanted, importance, name)


def packed_as(change: Tensor, wanted: Wanted, importance: Tensor | None, name: str) -> Packed:
    """A change float32 [out, in] in the form that is wanted."""
    train = TensorTrain(())
    if wanted.rank:
        train = decompose(change, wanted.modes, wanted.relative_error, wanted.rank)
    return pack(change, train, wanted, importance, name)


def pack(
    change: Tensor, train: TensorTrain, wanted: Wanted, importance: Tensor | None, name: str
) -> Packed:
    """The train, rounded, and the sparse part of what it then leaves."""
    options, tensors, left = stored_train(train, wanted.core_bits)
    residual = change - left.dense() if left.cores else change
    more, places = _sparse(residual, wanted, importance)
    shape = (change.shape[0], change.shape[1])
    return Packed("saten", shape, {**options, **more}, {**tensors, **places}, name)


def wanted_for(change: Tensor, options: Options) -> Wanted:
    """The options with defaults, for this change.

    Raises:
        CompressionRefused: naming the option.
    """
    refused = CompressionRefused
    asked = {**DEFAULTS, **options}
    rows, columns = check_linear(tuple(change.shape), "saten")
    rank = integer(asked, "rank", 0, 65536, refused)
    modes = _modes(change, str(asked["modes"]), max(rank, 1))
    pattern = choice(asked, "pattern", PATTERNS, refused)
    density = float(number(asked, "density", refused))
    error = float(number(asked, "relative_error", refused))
    if not 0 <= density <= 1 or not 0 <= error < 1:
        raise refused(
            f"density is {density}, relative_error {error}; expected 0..1 and 0 or more, below 1"
        )
    if pattern == "2:4" and columns % saten_sparse.GROUP:
        raise refused(f"2:4 needs rows of a multiple of 4 inputs; found {columns}")
    kept = rows * columns // 2 if pattern == "2:4" else round(density * rows * columns)
    if error and rank == DEFAULTS["rank"] and "rank" not in options:
        rank = max(largest_ranks(modes))
    return Wanted(
        modes=modes,
        rank=min(rank, max(largest_ranks(modes))),
        relative_error=error,
        pattern=pattern if kept else "none",
        kept=kept,
        core_bits=_bits(asked, "core_bits"),
        value_bits=_bits(asked, "value_bits"),
        rows_per_step=integer(asked, "rows_per_step", 1, 2**31 - 1, refused),
    )


def _bits(asked: Options, key: str) -> int:
    bits = integer(asked, key, 4, 16, CompressionRefused)
    if bits not in saten_values.BITS:
        raise CompressionRefused(f"option {key!r} is {bits}; expected 4, 8 or 16")
    return bits


def _modes(change: Tensor, asked: str, rank: int) -> Modes:
    shape = (change.shape[0], change.shape[1])
    if asked == "low-rank":
        return low_rank_modes(shape)
    out, inputs = balanced(shape[0], 2), balanced(shape[1], 2)
    if asked == "matrix":
        return tuple(zip(out, inputs, strict=True))
    if asked == "vector":
        return (*((a, 1) for a in out), *((1, b) for b in inputs))
    if asked == "auto":
        return candidates(shape)[next(iter(best_modes(change, rank * sum(shape))))]
    modes = read_modes(asked) if "x" in asked else ()
    if not modes:
        raise CompressionRefused(
            f"modes {asked!r} are not known; expected {', '.join(NAMED)} or pairs such as "
            "'24x24 24x24'"
        )
    if not 2 <= len(modes) <= MAX_STAGES or shape_of(modes) != shape:
        raise CompressionRefused(
            f"modes {asked!r} are not 2 to {MAX_STAGES} pairs of factors of {list(shape)}"
        )
    return modes


def stored_train(
    train: TensorTrain, bits: int
) -> tuple[dict[str, Any], dict[str, Tensor], TensorTrain]:
    """Options and tensors of a train, and the train that they stand for."""
    if not train.cores:
        return {"modes": ""}, {}, train
    form = TrainForm(train.modes, train.ranks, bits)
    flat, group = torch.cat([core.flatten() for core in train.cores]), form.group()
    stored = saten_values.store(flat, group, form.groups, bits)
    read = torch.split(
        saten_values.read(stored, group, bits), [core.numel() for core in train.cores]
    )
    rounded = [values.view(c.shape) for values, c in zip(read, train.cores, strict=True)]
    options = {
        "modes": written_modes(train.modes),
        "ranks": " ".join(map(str, train.ranks)),
        "core_bits": bits,
        "core_gain": stored.gain,
    }
    tensors = {"cores": stored.values}
    if stored.step is not None:
        tensors["core_steps"] = stored.step
    return options, tensors, TensorTrain(tuple(rounded))


def _sparse(
    residual: Tensor, wanted: Wanted, importance: Tensor | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Options and tensors of the largest entries."""
    if wanted.pattern == "none":
        return {"pattern": "none"}, {}
    if wanted.pattern == "2:4":
        places = saten_sparse.two_of_four(residual)
        coded: dict[str, int] = {}
        tensors = {"pairs": saten_sparse.encode_pairs(places)}
    else:
        places = saten_sparse.largest(residual, wanted.kept, importance)
        gaps = saten_sparse.encode_gaps(places)
        coded = {"low_bits": gaps.low_bits, "high_bytes": len(gaps.high)}
        tensors = {"low": gaps.low, "high": gaps.high}
    shape = (residual.shape[0], residual.shape[1])
    form = SparseForm(shape, wanted.pattern, wanted.value_bits, wanted.rows_per_step, len(places))
    values = residual.flatten()[places]
    stored = saten_values.store(values, form.group(places), form.groups, form.bits)
    tensors["values"] = stored.values
    if stored.step is not None:
        tensors["value_steps"] = stored.step
    options = {
        "pattern": wanted.pattern,
        "value_bits": form.bits,
        "value_gain": stored.gain,
        "rows_per_step": form.rows_per_step,
        "kept": form.kept,
    }
    return {**options, **coded}, tensors
