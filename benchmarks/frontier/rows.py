"""Rows of the frontier in a JSON lines file: what was measured once is not measured again.

Owns: the key of a row, reading and appending. Does not know: how a row comes about.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.results import append_json_lines, json_lines
from tsugiki.compress.reference import MAX_ANSWER_TOKENS


class Key(NamedTuple):
    """What makes two rows the same measurement."""

    fine_tune: str
    codec: str
    size: float  # honest bits per parameter that were offered
    seed: int
    limit: int  # test examples asked for
    own_limit: int  # of them, those answered at length by the fine-tune
    tokens: int = MAX_ANSWER_TOKENS  # of the answers compared, at most


@dataclass(frozen=True, slots=True)
class Row:
    """One codec at one size on one fine-tune with one seed."""

    fine_tune: str
    codec: str
    size: float
    seed: int
    limit: int
    own_limit: int
    bits: float  # honest bits per parameter that were taken; 0 where there is no such setting
    nominal_bits: float  # as the paper counts
    gold: dict[str, Any] | None  # see tsugiki.compress.evaluate.Evaluation; None: no setting
    own: dict[str, Any] | None  # on the fine-tune's own long answers
    seconds: float
    machine: dict[str, Any]
    tokens: int = MAX_ANSWER_TOKENS

    @property
    def key(self) -> Key:
        """See `Key`."""
        return Key(*(getattr(self, name) for name in Key._fields))

    @property
    def kl(self) -> float | None:
        """Nats per gold answer token."""
        return None if self.gold is None else float(self.gold["kl"]["value"])


def read(path: Path) -> Iterator[Row]:
    """The rows of a file; none where there is no file. A line that a kill left unfinished at the
    end is left out."""
    for found in json_lines(path):
        yield Row(**found)


def append(path: Path, row: Row) -> None:
    """Add a row."""
    append_json_lines(path, [asdict(row)])
