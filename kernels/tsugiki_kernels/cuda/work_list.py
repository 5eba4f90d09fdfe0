"""Which rows of a step meet which part of which variant, as the kernels of a call walk it.

Owns: the mirror of src/work_list.cuh. Knows nothing of what a part holds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span

CHUNK_ROWS = 64  # rows of a segment that one item takes
SEGMENT_WORDS = 6


@dataclass(frozen=True, slots=True)
class ResidentPart:
    """What the host must know of one part of a linear that lies in device memory."""

    record: int  # address of its record
    inputs: int
    offset: int  # first output of the fused linear that it adds to
    width: int  # outputs of the fused linear up to the end of this part
    tiles: tuple[int, int]  # items of each pass, for one chunk of rows
    scratch: int  # floats of scratch memory per row


@dataclass(frozen=True, slots=True)
class WorkList:
    """One call's segments, to be copied to the device, and the scratch memory they need."""

    segments: Tensor  # int64 [capacity + 1, 6] in host memory
    passes: tuple[bool, bool]  # whether each has items
    scratch: int  # floats
    inputs: int
    width: int  # outputs that `out` must have


def work_list(
    linears: Sequence[Sequence[ResidentPart]], spans: Sequence[Span], capacity: int | None = None
) -> WorkList:
    """The parts of each variant's linear, for its rows.

    capacity: entries of the list, at least one for each part; a captured graph fixes it.

    Raises:
        BadArgument: more parts than `capacity`, or linears of several input widths.
    """
    found = [
        (part, span)
        for parts, span in zip(linears, spans, strict=True)
        for part in parts
        if span[0] < span[1]
    ]
    if capacity is not None and len(found) > capacity:
        raise BadArgument(f"spans: {len(found)} parts, the list holds {capacity}")
    inputs = {part.inputs for part, _ in found}
    if len(inputs) > 1:
        raise BadArgument(f"staged: expected one input width, found {sorted(inputs)}")
    entries: list[tuple[int, ...]] = []
    first, second, scratch = 0, 0, 0
    for part, (start, stop) in found:
        rows = stop - start
        entries.append((part.record, start, rows, first, second, scratch))
        chunks = -(-rows // CHUNK_ROWS)
        first += chunks * part.tiles[0]
        second += chunks * part.tiles[1]
        scratch += rows * part.scratch
    unused = (len(found) if capacity is None else capacity) - len(found)
    entries += [(0, 0, 0, first, second, scratch)] * (unused + 1)
    return WorkList(
        segments=torch.tensor(entries, dtype=torch.int64),
        passes=(first > 0, second > 0),
        scratch=scratch,
        inputs=max(inputs, default=0),
        width=max((part.width for part, _ in found), default=0),
    )
