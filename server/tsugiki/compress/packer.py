"""Which codec carries which change, and how far the stored change is from the true one.

Owns: the choice between the variant's codec, plain differences and whole rows.
Does not know: files, how changes were found, budgets.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Codec, Layout, ModuleStats, Options, Packed
from tsugiki.codecs.fit import LM_HEAD, ROWS
from tsugiki.compress.budget import shared_out
from tsugiki.compress.report import Deviation, ModuleReport
from tsugiki.compress.survey import Change, Pair, Pairs, refuse
from tsugiki.errors import CompressionRefused

DENSE = "dense"
FLOAT16, INT8 = "float16", "int8"  # how vectors are stored: as usual, under a size limit
VECTOR_ERROR = 2.0**-9  # relative; twice float16's own rounding
CODED = ("linear", "embedding", "lm_head")
FEW_ROWS = 16  # so few whole rows are never worth an approximation


@dataclass(frozen=True, slots=True)
class Stored:
    """One module of the file and what became of the change that it carries."""

    packed: Packed
    parameters: int  # that it changes
    deviation: Deviation

    def report(self) -> ModuleReport:
        """The line of this module in the report."""
        return ModuleReport(
            name=self.packed.name,
            codec=self.packed.codec,
            parameters=self.parameters,
            nbytes=self.packed.nbytes,
            relative_error=self.deviation.relative_error,
            gain=self.deviation.gain,
        )


class Packer:
    """Packs one change after the other with the options of one job."""

    def __init__(
        self,
        codec: Codec,
        asked: Options,
        layout: Layout,
        stats: Mapping[str, ModuleStats] | None = None,
        vector_dtype: str = FLOAT16,
        shares: Mapping[str, float] | None = None,
    ) -> None:
        """`asked`: the codec's options; `vector_dtype`: how norms and biases are stored (dense);
        `shares`: of the bytes that the options stand for, by name, 1 where there is none."""
        self.codec = codec
        self.asked = dict(asked)
        self._layout = layout
        self._stats = stats or {}
        self._vector_dtype = vector_dtype
        self._shares = shares or {}

    def with_options(self, options: Options) -> "Packer":
        """The same with some of the codec's options set."""
        merged = {**self.asked, **options}
        return Packer(
            self.codec, merged, self._layout, self._stats, self._vector_dtype, self._shares
        )

    def has_choice(self, change: Change) -> bool:
        """Whether the codec's options decide how large this change is stored."""
        few = change.rows is not None and len(change.rows) <= FEW_ROWS
        return change.kind in CODED and not few

    def kind(self, change: Change) -> tuple[Any, ...]:
        """Changes of one kind are stored in equally many bytes."""
        return change.shape, self._correction(change.name) is not None

    def share(self, change: Change) -> float:
        """Of the bytes that the options stand for, what this change takes."""
        return self._shares.get(change.name, 1.0)

    def read(self, pairs: Pairs, change: Change) -> Pair:
        """Both sides of a change, as `pack` takes them."""
        return pairs.read(change, backbone=self.codec.role == "parameters")

    def pack(self, pair: Pair) -> Iterator[Stored]:
        """The modules that carry a change: one, or rows beside a delta.

        Raises:
            CompressionRefused: the codec cannot carry it.
        """
        if pair.change.rows is not None:
            yield from self._table(pair, pair.change.rows)
        elif pair.change.kind == "linear":
            yield self._coded(pair, pair.tuned)
        else:
            yield self._vector(pair)

    def _coded(self, pair: Pair, tuned: Tensor) -> Stored:
        name = pair.change.name
        width, share = pair.base.shape[-1], self.share(pair.change)
        options = {**shared_out(self.codec.name, self.asked, share, width), "name": name}
        packed = self.codec.compress(pair.base, tuned, self._correction(name), options)
        stored = self.codec.effective(pair.base, packed).weight - pair.base
        return Stored(packed, pair.base.numel(), Deviation.between(tuned - pair.base, stored))

    def _correction(self, name: str) -> ModuleStats | None:
        """Statistics for a bias correction, where an ordinary checkpoint has a place for a bias."""
        return self._stats.get(name) if name in self._layout.bias_allowed else None

    def importance(self, name: str) -> Tensor | None:
        """E[x^2] of a linear's inputs, float32 [in], where it is known and counts."""
        stats = self._correction(name)
        return None if stats is None else stats.second_moment.float()

    def _vector(self, pair: Pair) -> Stored:
        """A norm or a bias, as a difference."""
        stored = _difference(pair, self._vector_dtype)
        # float16 underflows on tiny changes
        exact_enough = stored.deviation.relative_error <= VECTOR_ERROR or self._vector_dtype == INT8
        return stored if exact_enough else _difference(pair, "float32")

    def _table(self, pair: Pair, rows: Tensor) -> Iterator[Stored]:
        """An embedding or lm_head: a delta of the base's rows where that is smaller than the rows
        themselves; added tokens are rows always."""
        known = len(pair.base)
        whole = _rows(pair.change.name, pair.base, pair.tuned)
        of_delta = self.codec.role == "delta"  # else: of a form that only linears have
        if of_delta and int((rows < known).sum()) > FEW_ROWS:
            coded = self._coded(pair, pair.tuned[:known])
            if coded.packed.nbytes < whole.packed.nbytes:
                yield coded
                if len(pair.tuned) > known:
                    yield _rows(pair.change.name, pair.tuned[:known], pair.tuned)
                return
        yield whole


def _difference(pair: Pair, dtype: str) -> Stored:
    codec = CODECS[DENSE]
    options = {"mode": "delta", "dtype": dtype, "name": pair.change.name}
    packed = codec.compress(pair.base, pair.tuned, None, options)
    stored = codec.effective(pair.base, packed).weight - pair.base
    return Stored(packed, pair.change.numel, Deviation.between(pair.tuned - pair.base, stored))


def _rows(name: str, base: Tensor, tuned: Tensor) -> Stored:
    """The rows that differ and those beyond the base's, exactly; they count as what they are."""
    packed = CODECS[DENSE].compress(base, tuned, None, {"mode": "rows", "name": name + ROWS})
    return Stored(packed, packed.tensors["values"].numel(), Deviation())


def markers(pairs: Pairs, stored: tuple[Stored, ...]) -> tuple[Stored, ...]:
    """What tells an untied fine-tune of a tied base from a tied one, where lm_head has no delta."""
    tables = {pairs.layout.embedding, pairs.layout.embedding + ROWS, LM_HEAD + ROWS}
    names = {item.packed.name for item in stored}
    untied = pairs.layout.tied and not pairs.tuned.tied
    if not untied or LM_HEAD in names or not names & tables:
        return ()
    return (_untied_marker(pairs.layout),)


def _untied_marker(layout: Layout) -> Stored:
    """An lm_head that stays as the tied base has it although the fine-tune is untied: without this
    module a change of the embedding would move the output side as well."""
    packed = CODECS[DENSE].zero(layout.embedding_shape)
    return Stored(replace(packed, name=LM_HEAD), 0, Deviation())


def pack_all(packer: Packer, pairs: Pairs, changes: Iterable[Change]) -> tuple[Stored, ...]:
    """Pack every change.

    Raises:
        CompressionRefused: with the reasons of all modules that the codec cannot carry.
    """
    stored: list[Stored] = []
    problems: list[str] = []
    for change in changes:
        try:
            stored.extend(packer.pack(packer.read(pairs, change)))
        except CompressionRefused as error:
            problems.append(str(error))
    reasons = list(dict.fromkeys(problems))
    if len(problems) > 1 and len(reasons) == 1:  # an option that no module accepts
        raise CompressionRefused(reasons[0])
    refuse(reasons)
    return tuple(stored)
