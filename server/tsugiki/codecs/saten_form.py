"""How a module of saten is stored: the options that shape it, its cores, places and values.

Owns: reading and checking options, and the numbers that stored tensors stand for. Does not know:
how they were found (saten_fit.py), kernels. Decoding is specified in docs/format.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tsugiki.codecs import saten_sparse, saten_values
from tsugiki.codecs.base import Options, Packed, Part
from tsugiki.codecs.checks import check_linear
from tsugiki.codecs.masks import MAX_COLUMNS
from tsugiki.codecs.options import choice, integer, number, only
from tsugiki.codecs.saten_train import (
    Modes,
    TensorTrain,
    largest_ranks,
    parameters_of,
    shape_of,
)
from tsugiki.errors import InvalidArtifact
from tsugiki_kernels.deltas import MAX_STAGES

NAME = "saten"
PATTERNS = ("none", "free", "2:4")
TRAIN: tuple[str, ...] = ("modes", "ranks", "core_bits", "core_gain")
SPARSE: tuple[str, ...] = ("pattern", "value_bits", "value_gain", "rows_per_step", "kept")
CODED_PLACES = ("low_bits", "high_bytes")


@dataclass(frozen=True, slots=True)
class TrainForm:
    """How a train is stored; without modes there is none."""

    modes: Modes
    ranks: tuple[int, ...]
    bits: int

    @property
    def count(self) -> int:
        """Numbers in all cores."""
        return parameters_of(self.modes, self.ranks) if self.modes else 0

    def shapes(self) -> list[tuple[int, int, int, int]]:
        """Of the cores."""
        ends = pairwise((1, *self.ranks, 1))
        return [(r, a, b, s) for (r, s), (a, b) in zip(ends, self.modes, strict=True)]

    @property
    def groups(self) -> int:
        """Steps: one for each index of the bond behind a core, of the last core before it."""
        return sum(self.ranks) + self.ranks[-1] if self.modes else 0

    def group(self) -> Tensor:
        """Of each number, int64 [count]."""
        found, first = [], 0
        for place, (left, outputs, inputs, right) in enumerate(self.shapes()):
            last = place == len(self.modes) - 1
            bond = torch.arange(left)[:, None] if last else torch.arange(right)[None, :]
            size = (left, outputs * inputs, right)
            found.append((bond[:, None] + first).expand(size).flatten())
            first += left if last else right
        return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, slots=True)
class SparseForm:
    """How a sparse part is stored."""

    shape: tuple[int, int]
    pattern: str
    bits: int = 16
    rows_per_step: int = 1
    kept: int = 0
    low_bits: int = 0
    high_bytes: int = 0

    @property
    def groups(self) -> int:
        """Steps."""
        return -(-self.shape[0] // self.rows_per_step) if self.pattern != "none" else 0

    def group(self, places: Tensor) -> Tensor:
        """Of each value, int64 [kept]."""
        return places // self.shape[1] // self.rows_per_step

    def place_parts(self) -> dict[str, Part]:
        """The tensors that places take."""
        if self.pattern == "2:4":
            return {"pairs": (torch.uint8, (-(-self.kept // 4),))}
        low = -(-self.kept * self.low_bits // 8)
        return {"low": (torch.uint8, (low,)), "high": (torch.uint8, (self.high_bytes,))}


def stored_parts(shape: tuple[int, ...], options: Options) -> Mapping[str, Part]:
    """Which tensors a module stores; see `Codec.parts`.

    Raises:
        InvalidArtifact: naming the option.
    """
    train, sparse = train_form(shape, options), sparse_form(shape, options)
    only(options, _known(train, sparse))
    found: dict[str, Part] = {}
    if train.modes:
        number(options, "core_gain")
        bits, count, groups = train.bits, train.count, train.groups
        found |= saten_values.part_shapes("cores", "core_steps", bits, count, groups)
    if sparse.pattern != "none":
        number(options, "value_gain")
        bits, count, groups = sparse.bits, sparse.kept, sparse.groups
        found |= saten_values.part_shapes("values", "value_steps", bits, count, groups)
        found |= sparse.place_parts()
    return found


def _known(train: TrainForm, sparse: SparseForm) -> tuple[str, ...]:
    known = TRAIN if train.modes else TRAIN[:1]
    known += SPARSE if sparse.pattern != "none" else SPARSE[:1]
    return known + CODED_PLACES if sparse.pattern == "free" else known


def train_form(shape: tuple[int, ...], options: Options) -> TrainForm:
    """What the options say of the train.

    Raises:
        InvalidArtifact: naming the option.
    """
    modes = read_modes(options.get("modes"))
    if not modes:
        return TrainForm((), (), 16)
    if len(modes) < 2 or len(modes) > MAX_STAGES or shape_of(modes) != tuple(shape):
        raise InvalidArtifact(
            f"option 'modes' is {options['modes']!r}; expected 2 to {MAX_STAGES} pairs of factors "
            f"of {list(shape)}"
        )
    text = options.get("ranks")
    words = text.split(" ") if isinstance(text, str) else []
    most = largest_ranks(modes)
    fits = len(words) == len(most) and all(
        _is_count(word) and 1 <= int(word) <= m for word, m in zip(words, most, strict=True)
    )
    if not fits:
        raise InvalidArtifact(f"option 'ranks' is {text!r}; expected at most {most}")
    return TrainForm(modes, tuple(map(int, words)), _bits(options, "core_bits"))


def sparse_form(shape: tuple[int, ...], options: Options) -> SparseForm:
    """What the options say of the sparse part.

    Raises:
        InvalidArtifact: naming the option.
    """
    rows, columns = check_linear(shape, NAME)
    pattern = choice(options, "pattern", PATTERNS)
    if columns > MAX_COLUMNS:
        raise InvalidArtifact(f"{columns} columns; saten holds at most {MAX_COLUMNS}")
    if pattern == "none":
        return SparseForm((rows, columns), pattern)
    entries, bits = rows * columns, _bits(options, "value_bits")
    per_step = integer(options, "rows_per_step", 1, 2**31 - 1)
    kept = integer(options, "kept", 1, entries)
    if pattern == "2:4":
        if columns % saten_sparse.GROUP or kept != entries // 2:
            raise InvalidArtifact(f"option 'kept' is {kept}; 2:4 keeps half of {list(shape)}")
        return SparseForm((rows, columns), pattern, bits, per_step, kept)
    low = integer(options, "low_bits", 0, saten_sparse.LOW_BITS[-1])
    most = saten_sparse.most_high_bytes(kept, entries, low)
    high = integer(options, "high_bytes", (kept + 7) // 8, most)
    return SparseForm((rows, columns), pattern, bits, per_step, kept, low, high)


def _bits(options: Options, key: str) -> int:
    bits = integer(options, key, saten_values.BITS[0], saten_values.BITS[-1])
    if bits not in saten_values.BITS:
        raise InvalidArtifact(f"option {key!r} is {bits}; expected 4, 8 or 16")
    return bits


def _is_count(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) < 10 and word == str(int(word))


def read_modes(text: object) -> Modes:
    """ "24x24 24x24" as pairs of numbers; "" has none.

    Raises:
        InvalidArtifact: it is not such a text.
    """
    if text == "":
        return ()
    pairs = [word.split("x") for word in text.split(" ")] if isinstance(text, str) else []
    if not pairs or not all(len(pair) == 2 and all(map(_is_count, pair)) for pair in pairs):
        raise InvalidArtifact(f"option 'modes' is {text!r}; expected pairs such as '24x24 24x24'")
    return tuple((int(a), int(b)) for a, b in pairs)


def written_modes(modes: Modes) -> str:
    """The inverse of `read_modes`."""
    return " ".join(f"{a}x{b}" for a, b in modes)


def train_of(packed: Packed) -> TensorTrain:
    """The stored train; without cores where there is none."""
    form = train_form(packed.shape, packed.options)
    if not form.modes:
        return TensorTrain(())
    gain = float(packed.options["core_gain"])
    stored = saten_values.Stored(gain, packed.tensors["cores"], packed.tensors.get("core_steps"))
    flat = saten_values.read(stored, form.group(), form.bits)
    shapes = form.shapes()
    sizes = [torch.Size(shape).numel() for shape in shapes]
    cores = zip(torch.split(flat, sizes), shapes, strict=True)
    return TensorTrain(tuple(core.view(shape) for core, shape in cores))


def places_of(packed: Packed) -> Tensor:
    """int64 [kept], ascending in the flat matrix.

    Raises:
        InvalidArtifact: places that cannot be.
    """
    form = sparse_form(packed.shape, packed.options)
    if form.pattern == "none":
        return torch.empty(0, dtype=torch.int64)
    tensors, entries = packed.tensors, packed.shape[0] * packed.shape[1]
    if form.pattern == "2:4":
        return saten_sparse.decode_pairs(tensors["pairs"], entries // saten_sparse.GROUP)
    stored = saten_sparse.Gaps(form.low_bits, tensors["low"], tensors["high"])
    return saten_sparse.decode_gaps(stored, form.kept, entries)


def entries_of(packed: Packed) -> tuple[Tensor, Tensor]:
    """Places, and what is stored there (float32 [kept])."""
    form, places = sparse_form(packed.shape, packed.options), places_of(packed)
    if form.pattern == "none":
        return places, torch.empty(0)
    gain = float(packed.options["value_gain"])
    stored = saten_values.Stored(gain, packed.tensors["values"], packed.tensors.get("value_steps"))
    return places, saten_values.read(stored, form.group(places), form.bits)


def rows_of(places: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where each row begins among the places (int32 [out + 1]), and their columns (uint16)."""
    first = torch.arange(shape[0] + 1) * shape[1]
    start = torch.searchsorted(places, first).to(torch.int32)
    return start, (places % shape[1]).to(torch.uint16)
