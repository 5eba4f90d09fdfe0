"""Packing into a number of bytes by codecs whose settings differ from matrix to matrix.

Owns: the menus of all changes, the choice among them, and that the file is within its limit. Does
not know: what is on a menu (codecs/saten_budget.py).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor

from tsugiki.codecs import artifact, saten_budget
from tsugiki.codecs.artifact import ArtifactSpec
from tsugiki.codecs.base import Options
from tsugiki.codecs.saten_budget import Choice, allocate
from tsugiki.compress.budget import TooSmall
from tsugiki.compress.packer import Packer, Stored, pack_all
from tsugiki.compress.progress import Progress
from tsugiki.compress.sizing import Limit
from tsugiki.compress.survey import Change, Pairs

Menu = Callable[[Tensor, Tensor | None, Options], Sequence[Choice]]
MENUS: Mapping[str, Menu] = {"saten": saten_budget.menu}
HEADER_OF_MODULE = 260  # bytes, about: the options of each module differ
ATTEMPTS = 4


def pack_allocated(
    packer: Packer,
    pairs: Pairs,
    changes: Iterable[Change],
    limit: Limit,
    spec: ArtifactSpec,
    progress: Progress,
) -> tuple[Stored, ...]:
    """Pack with the settings that save the most error per byte, within the limit.

    Raises:
        TooSmall: even the cheapest settings are too large. CompressionRefused: a module cannot be
            carried.
    """
    chosen: list[Change] = []
    others: list[Change] = []
    for change in changes:
        (chosen if packer.has_choice(change) else others).append(change)
    fixed = pack_all(packer, pairs, others)
    menus = {
        change.name: _menu(packer, pairs, change, MENUS[spec.codec])
        for change in progress.track(chosen, "weighing settings", total=len(chosen))
    }
    parameters = sum(item.parameters for item in fixed) + sum(c.numel for c in chosen)
    allowed = limit.bytes_for(parameters)
    beside = artifact.file_bytes(spec, {item.packed.name: item.packed for item in fixed})
    room = allowed - beside - HEADER_OF_MODULE * len(chosen)
    size = 0
    for _ in range(ATTEMPTS):
        settings = allocate(menus, room)
        stored = list(fixed)
        for change in progress.track(chosen, "packing", total=len(chosen)):
            stored += pack_all(packer.with_options(settings[change.name].options), pairs, [change])
        size = artifact.file_bytes(spec, {item.packed.name: item.packed for item in stored})
        if size <= allowed:
            return tuple(stored)
        room -= size - allowed
    raise TooSmall(
        f"{spec.codec} cannot make a file this small: {allowed:,} bytes are allowed, its "
        f"cheapest settings take {size:,}; allow more bytes, or use deltadq, which reaches the "
        "smallest files"
    )


def _menu(packer: Packer, pairs: Pairs, change: Change, menu: Menu) -> Sequence[Choice]:
    pair = pairs.read(change)
    known = pair.tuned[: len(pair.base)]
    return menu(known - pair.base, packer.importance(change.name), packer.asked)
