"""Which rows of a step meet which part of which variant, as kernels walk it.

Owns: the mirror of src/work_list.cuh. Knows nothing of what a part holds, nor of where lists lie.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.interface import Span

CHUNK_ROWS = 64  # rows of a segment that one item takes
SEGMENT_WORDS = 6
PART_WORDS = 4


@dataclass(frozen=True, slots=True)
class ResidentPart:
    """What the host must know of one part of a linear that lies in device memory."""

    record: int  # address of its record
    inputs: int
    offset: int  # first output of the fused linear that it adds to
    width: int  # outputs of the fused linear up to the end of this part
    tiles: tuple[int, int]  # items of each pass, for one chunk of rows
    scratch: int  # floats of scratch memory per row

    @property
    def words(self) -> tuple[int, int, int, int]:
        """What a list says of it: address, items of each pass and floats as above."""
        return self.record, *self.tiles, self.scratch


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
    room = len(found) if capacity is None else capacity
    if len(found) > room:
        raise BadArgument(f"spans: {len(found)} parts, the list holds {room}")
    inputs = {part.inputs for part, _ in found}
    if len(inputs) > 1:
        raise BadArgument(f"staged: expected one input width, found {sorted(inputs)}")
    words = torch.tensor([part.words for part, _ in found], dtype=torch.int64)
    lists = torch.empty(1, room + 1, SEGMENT_WORDS, dtype=torch.int64)
    passes = write_lists(lists, words.view(-1, 1, 1, PART_WORDS), [span for _, span in found])
    first, second = passes[0].tolist()
    return WorkList(
        segments=lists[0],
        passes=(first, second),
        scratch=int(lists[0, -1, -1]),
        inputs=max(inputs, default=0),
        width=max((part.width for part, _ in found), default=0),
    )


def write_lists(lists: Tensor, parts: Tensor, spans: Sequence[Span]) -> Tensor:
    """The list of each linear, for one span of each variant; bool [linears, 2]: passes with items.

    lists: int64 [linears, capacity + 1, SEGMENT_WORDS], overwritten. parts: int64 [variants,
    linears, most parts, PART_WORDS], zeros for parts that a variant does not have; they get entries
    without items. First come the first parts of all variants, so that entries of linears which
    are not fused lie side by side.
    """
    variants, linears, most, _ = parts.shape
    used = variants * most
    start, stop = torch.tensor(spans, dtype=torch.int64).view(-1, 2).unbind(1)
    rows = stop - start
    of_rows = torch.stack([-(-rows // CHUNK_ROWS)] * 2 + [rows], 1)  # chunks, chunks, rows
    entries = parts.permute(1, 2, 0, 3).reshape(linears, used, PART_WORDS)
    amounts = entries[..., 1:] * of_rows.repeat(most, 1)
    ends = amounts.cumsum(1)
    totals = amounts.sum(1)
    lists[:, :used, 0] = entries[..., 0]
    lists[:, :used, 1] = start.repeat(most)
    lists[:, :used, 2] = rows.repeat(most)
    lists[:, :used, 3:] = ends - amounts
    lists[:, used:, :3] = 0
    lists[:, used:, 3:] = totals[:, None]
    return totals[:, :2] > 0
