"""The codecs that tsugiki stores, priced by the bytes of their tensors.

Owns: their settings at a size. Does not know: other people's codecs (peers.py).
"""

import math
from dataclasses import replace
from typing import Any

import torch

from benchmarks.frontier.approximation import SEED_BITS, Approximation, Asked, Method
from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Options
from tsugiki.codecs.masks import Mask
from tsugiki.commands.compress import PAPER
from tsugiki.compress.budget import GROUP, Template, TooSmall, choose, group_size_of
from tsugiki.compress.report import paper_ratio

BF16_BITS = 16
PAPER_BITS = 4  # of a survivor, see PAPER


def packed(codec: str, asked: Asked, options: Options) -> Approximation:
    """Compress with one of tsugiki's codecs."""
    method = CODECS[codec]
    wanted = {**options, "name": asked.name}
    module = method.compress(asked.base, asked.tuned, asked.stats, wanted)
    dense = method.effective(torch.zeros_like(asked.base), module)
    ratio = paper_ratio(codec, module.options)
    bits = 8.0 * module.nbytes
    nominal = bits if ratio is None else BF16_BITS * asked.base.numel() / ratio
    return Approximation(dense.weight, bits, nominal, dense.bias)


def ours(*, even: bool = False, **fixed: int) -> Method:
    """deltadq as `tsugiki compress --target-ratio --calibration` chooses it; `fixed` options are
    kept. `even`: as many bytes for a parameter of every matrix."""

    def method(asked: Asked) -> Approximation | None:
        share = 1.0 if even else asked.share
        options: dict[str, Any] = {**fixed, "seed": asked.seed}
        chosen = _chosen(asked, options, fixed, share)
        return None if chosen is None else packed("deltadq", asked, {**options, **chosen})

    return method


def _chosen(asked: Asked, options: Options, fixed: Options, share: float) -> dict[str, Any] | None:
    """Bits, alpha and group size for the share of the size that is asked for."""
    rows, columns = asked.base.shape
    example = CODECS["deltadq"].compress(asked.base, asked.tuned, asked.stats, options)
    kinds = [Template("deltadq", (rows, columns), example.options, 1)]
    beside = sum(t.nbytes for part, t in example.tensors.items() if part in ("step", "bias"))
    even = int(asked.limit / 8)
    # a matrix whose share is too little for one survivor in each tile takes that much
    least = min(even, kinds[0].nbytes({"bits": 1, "alpha": columns, "group_size": columns}))
    limit = max(least, beside + int((even - beside) * share))
    try:
        chosen = choose("deltadq", kinds, limit, fixed, least=int(0.96 * limit))
    except TooSmall:
        return None
    return {key: min(value, columns) for key, value in chosen.items()}


def paper_deltadq(asked: Asked) -> Approximation | None:
    """DeltaDQ as published: 4-bit min-max codes in 8 parts, a mask for each row. Positions come
    from a seed here, which the paper does not say; in CSR they would cost 16 bits a survivor."""
    without = replace(asked, stats=None)
    alpha = math.ceil(PAPER_BITS / asked.size)
    if alpha > asked.base.shape[1]:
        return None
    # a row's last group is shorter and keeps one at least: many large groups would keep too much
    group = group_size_of(alpha) if alpha <= GROUP else asked.base.shape[1]
    options = {**PAPER, "alpha": alpha, "group_size": group, "seed": asked.seed}
    found = packed("deltadq", without, options)
    rows, columns = asked.base.shape
    kept = Mask(asked.seed, asked.name, rows, columns, alpha, group, 1).kept
    # without the padding of our format, which has rows of few codes begin at whole bytes
    return replace(found, bits=float(rows * kept * PAPER_BITS + 2 * BF16_BITS + SEED_BITS))


def bitdelta(asked: Asked) -> Approximation | None:
    """BitDelta (arXiv 2402.10193): signs and mean |D|, a scale for each row; without its training
    of scales."""
    plain = replace(asked, stats=None)
    return packed("bitdelta", plain, {"gain_matching": False}) if asked.size >= 1 else None


def bitdelta_gain(asked: Asked) -> Approximation | None:
    """BitDelta with our gain matching, which costs nothing."""
    plain = replace(asked, stats=None)
    return packed("bitdelta", plain, {}) if asked.size >= 1 else None


def lora(asked: Asked) -> Approximation | None:
    """The best low-rank factors in 16 bits."""
    rank = int(asked.limit // (16 * sum(asked.base.shape)))
    return packed("lora", asked, {"rank": rank}) if rank else None
