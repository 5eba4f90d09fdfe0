"""Known answers as they are kept, and how well they tell variants apart. Pure but for its file.

Does not know how answers are found (answers.py).
"""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import combinations
from pathlib import Path

ASKED_OF_EACH = 2  # questions of a variant in the run: those that tell it from most others

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """Kept tokens of every prompt, by digest; which file has which digest."""

    dtype: str
    prompts: tuple[Tokens, ...]
    arithmetic: str = ""  # that computed them; benchmarks/arithmetic.py
    digests: dict[str, str] = field(default_factory=dict)  # by stem of the file
    kept: dict[str, tuple[Tokens, ...]] = field(default_factory=dict)  # by digest

    def save(self, path: Path) -> None:
        """Replace the file at once."""
        temporary = path.with_suffix(".tmp")
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        temporary.write_text(json.dumps(content))
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> "Known":
        """What was found so far; nothing without the file."""
        if not path.exists():
            return cls("", ())
        content = json.loads(path.read_text())
        kept = {digest: _nested(found) for digest, found in content["kept"].items()}
        prompts, arithmetic = _nested(content["prompts"]), content.get("arithmetic", "")
        return cls(content["dtype"], prompts, arithmetic, content["digests"], kept)

    def of(self, stems: Iterable[str]) -> dict[str, tuple[Tokens, ...]]:
        """Kept tokens by stem."""
        return {stem: self.kept[self.digests[stem]] for stem in stems}


def _nested(lists: Iterable[Iterable[int]]) -> tuple[Tokens, ...]:
    return tuple(tuple(tokens) for tokens in lists)


def differ(a: Tokens, b: Tokens) -> bool:
    """Whether two kept answers contradict each other; a longer one continues a shorter one."""
    return any(x != y for x, y in zip(a, b, strict=False))


def chosen(answers: Mapping[str, tuple[Tokens, ...]]) -> dict[str, tuple[int, ...]]:
    """For each variant the questions that tell it from most of the others, best first."""

    def told_apart(stem: str, question: int) -> int:
        own = answers[stem][question]
        return sum(differ(own, other[question]) for other in answers.values())

    return {
        stem: tuple(sorted(range(len(found)), key=lambda q: -told_apart(stem, q))[:ASKED_OF_EACH])
        for stem, found in answers.items()
    }


def distinct_share(answers: Mapping[str, tuple[Tokens, ...]]) -> tuple[float, float]:
    """(share of pairs whose known answers differ, share of other variants that one request to one
    variant would tell apart), over the questions that are asked."""
    questions = chosen(answers)
    pairs = requests = found = 0
    for a, b in combinations(answers, 2):
        asked = {q: differ(answers[a][q], answers[b][q]) for q in {*questions[a], *questions[b]}}
        pairs += any(asked.values())
        requests += len(questions[a]) + len(questions[b])
        found += sum(asked[q] for q in (*questions[a], *questions[b]))
    count = len(answers) * (len(answers) - 1) // 2
    return pairs / max(1, count), found / max(1, requests)


def most_distinct(answers: Mapping[str, tuple[Tokens, ...]], count: int) -> list[str]:
    """The `count` variants that are told from most of the others, in name order."""
    told_apart = {
        stem: sum(any(map(differ, own, other)) for other in answers.values())
        for stem, own in answers.items()
    }
    return sorted(sorted(answers, key=lambda stem: (-told_apart[stem], stem))[:count])
