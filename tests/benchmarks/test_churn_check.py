"""What the churn benchmark calls wrong and lost, and how its rounds are compared."""

import pytest

from benchmarks.churn.answers import sure_tokens
from benchmarks.churn.check import judge
from benchmarks.churn.compare import growth, quantile, waits
from benchmarks.churn.known import chosen, distinct_share, most_distinct
from benchmarks.churn.ledger import Change, History, Name
from benchmarks.churn.plan import Arrival
from benchmarks.churn.round import Round
from benchmarks.churn.traffic import End, Outcome

ANSWERS = {"a": ((1, 2, 3),), "b": ((1, 5),)}
CANARY = Name(frozenset({"a", "b"}), ("a",), "b")
HISTORY = History({"name": Name(frozenset({"a"}), ("a",))}, {"name": [Change(10.0, 11.0, CANARY)]})


def outcome(
    end: End,
    digest: str | None,
    tokens: tuple[int, ...],
    at: float = 1.0,
    user: str = "u",
    version: str | None = None,
) -> Outcome:
    arrival = Arrival(at, "name", user, 0)
    return Outcome(0, arrival, version, at, at + 0.1, end=end, digest=digest, tokens=tokens)


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (outcome("answered", "a", (1, 2, 3, 9)), False),
        (outcome("answered", "a", (1, 2, 4)), True),
        (outcome("answered", "a", (1, 2)), True),
        (outcome("left", "a", (1, 2)), False),
        (outcome("left", "a", (1, 5)), True),
        (outcome("answered", "b", (1, 5)), True),
        (outcome("answered", "b", (1, 5), at=12.0), False),
        (outcome("not-found", None, ()), True),
        (outcome("overloaded", None, ()), False),
        (outcome("answered", "a", (1, 2, 3), at=12.0, version="a"), False),
        (outcome("answered", "a", (1, 2, 3), at=12.0, version="b"), True),
        (outcome("not-found", None, (), at=12.0, version="b"), True),
        (outcome("not-found", None, (), version="b"), False),
    ],
)
def test_an_answer_must_be_that_of_a_version_the_name_meant(found: Outcome, wrong: bool) -> None:
    assert bool(judge([found], HISTORY, ANSWERS, planned=1).wrong) is wrong


def test_what_failed_or_was_never_sent_is_lost() -> None:
    verdict = judge([outcome("failed", "a", (1,))], HISTORY, ANSWERS, planned=2)
    assert len(verdict.lost) == 2


def test_a_user_keeps_the_version_during_a_canary() -> None:
    first = outcome("answered", "a", (1, 2, 3), at=12.0)
    second = outcome("answered", "b", (1, 5), at=13.0)
    other = outcome("answered", "b", (1, 5), at=14.0, user="other")
    assert judge([first, other], HISTORY, ANSWERS, planned=2).wrong == []
    assert len(judge([first, second], HISTORY, ANSWERS, planned=2).wrong) == 1
    asked_for = outcome("answered", "b", (1, 5), at=13.0, version="b")
    assert judge([first, asked_for], HISTORY, ANSWERS, planned=2).wrong == []


def test_tokens_count_while_they_are_the_best_by_the_margin() -> None:
    gaps = {7: 2.0, 8: 0.5, 9: 0.4, 10: 3.0}
    alternatives = [
        {f"token_id:{token}": -0.1, "token_id:1": -0.1 - g} for token, g in gaps.items()
    ]
    assert sure_tokens((7, 8, 9, 10), alternatives) == (7, 8)
    assert sure_tokens((7, 1, 9, 10), alternatives) == (7,)


def test_answers_are_distinct_when_they_contradict_and_not_when_one_is_longer() -> None:
    answers = {"x": ((1, 2), (3,)), "y": ((1,), (4,)), "z": ((1, 2, 3), (4, 4))}
    assert distinct_share(answers)[0] == pytest.approx(2 / 3)
    assert chosen(answers)["x"][0] == 1


def test_the_most_distinct_variants_are_those_that_contradict_most_others() -> None:
    answers = {"x": ((1,),), "unsure": ((),), "y": ((2,),), "z": ((1, 2),)}
    assert most_distinct(answers, 3) == ["x", "y", "z"]


def test_quantiles_are_values_that_occurred() -> None:
    assert quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert quantile([float(i) for i in range(1, 101)], 0.99) == 99.0


def made(kind: str, pid: int, rss: int, ttft: dict[str, float]) -> Round:
    return Round(kind, pid, {}, 0, [], [], {}, {"rss": rss}, 0, 0, 0.0, ttft)


def test_memory_compares_within_one_process_only() -> None:
    first, same, other = (made("churn", pid, rss, {}) for pid, rss in ((1, 100), (1, 101), (2, 99)))
    assert growth([first, same]) == {"rss": 1.01}
    assert growth([first, other]) is None


def test_waits_compare_over_arrivals_that_were_hot_in_every_round() -> None:
    rounds = [
        made("churn", 1, 0, {"0": 0.2, "1": 9.0}),
        made("calm", 1, 0, {"0": 0.1, "2": 5.0}),
    ]
    found = waits(rounds)
    assert found is not None
    assert (found["arrivals"], found["ratio"]) == (1, 2.0)
