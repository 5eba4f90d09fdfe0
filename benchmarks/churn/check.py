"""Which outcomes are wrong: the only place that judges.

Owns: the rules. A request is lost when it ended in neither an answer nor an allowed refusal, and
wrong when the version that answered could not have been meant, or its tokens are not those that
this version gives alone. Pure.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.churn.ledger import History
from benchmarks.churn.traffic import Outcome

Answers = Mapping[str, Sequence[tuple[int, ...]]]  # kept tokens of every question, by digest


@dataclass(slots=True)
class Verdict:
    """All outcomes of a round, counted."""

    counts: dict[str, int] = field(default_factory=dict)
    compared_tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def judge(outcomes: Iterable[Outcome], history: History, answers: Answers, planned: int) -> Verdict:
    """Hold every outcome against what may have been; `planned` arrivals must all have ended."""
    verdict = Verdict()
    outcomes = list(outcomes)
    for outcome in outcomes:
        verdict.counts[outcome.end] = verdict.counts.get(outcome.end, 0) + 1
        if outcome.end == "failed":
            verdict.lost.append(f"{outcome.arrival}: {outcome.detail}")
        elif problem := wrong(outcome, history, answers):
            verdict.wrong.append(f"{outcome.arrival}: {problem}")
        elif outcome.digest is not None:
            verdict.compared_tokens += len(expected(outcome, answers))
    verdict.wrong += inconsistent_users(outcomes, history)
    if len(outcomes) != planned:
        verdict.lost.append(f"{planned - len(outcomes)} arrivals were never sent")
    return verdict


def wrong(outcome: Outcome, history: History, answers: Answers) -> str | None:
    """Why this outcome cannot be right."""
    if outcome.end == "overloaded":
        return None
    name, version = outcome.arrival.name, outcome.version
    allowed = history.allowed(name, outcome.sent, outcome.accepted, version)
    if outcome.end == "not-found":
        return None if None in allowed else f"404 for a name that exists: {outcome.detail}"
    if outcome.digest not in allowed:
        meant = sorted(map(str, allowed))
        return f"answered by {outcome.digest}, which the name did not mean: {meant}"
    kept = expected(outcome, answers)
    if outcome.tokens[: len(kept)] != kept:
        return f"{outcome.digest} said {outcome.tokens}, alone it says {kept}"
    return None


def expected(outcome: Outcome, answers: Answers) -> tuple[int, ...]:
    """The kept tokens of the version that answered, as far as its client listened."""
    kept = tuple(answers[outcome.digest or ""][outcome.arrival.question])
    return kept[: len(outcome.tokens)] if outcome.end == "left" else kept


def inconsistent_users(outcomes: Iterable[Outcome], history: History) -> list[str]:
    """Users who, during one canary, were answered by both versions."""
    seen: dict[tuple[str, str, float], set[str]] = {}
    for outcome in outcomes:
        if outcome.digest is None or outcome.version is not None:
            continue
        name, user = outcome.arrival.name, outcome.arrival.user
        change = history.settled(name, outcome.sent, outcome.accepted)
        if change is not None and len(change.after.meaning) > 1:
            seen.setdefault((name, user, change.end), set()).add(outcome.digest)
    return [
        f"{user} was answered by {len(digests)} versions of {name} during one canary"
        for (name, user, _), digests in seen.items()
        if len(digests) > 1
    ]
