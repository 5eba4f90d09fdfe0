"""Which version may answer a request, from the calls that were under way at the time."""

import pytest

from benchmarks.churn.ledger import Change, History, Ledger, Name, effect
from benchmarks.churn.plan import Kind, Operation


def operation(kind: Kind, percent: float = 0.0) -> Operation:
    return Operation(0.0, kind, "name", "file", percent)


def after(*steps: tuple[Kind, str | None]) -> Name:
    name = Name(frozenset({"a"}), ("a",))
    for kind, digest in steps:
        name = effect(name, operation(kind, percent=50.0), digest)
    return name


def test_an_upload_becomes_the_active_version_and_rollback_returns_to_the_one_before() -> None:
    assert after(("put", "b")).meaning == {"b"}
    assert after(("put", "b"), ("rollback", None)).meaning == {"a"}


def test_the_same_file_again_is_no_new_activation() -> None:
    assert after(("put", "a")).activations == ("a",)


def test_an_inactive_upload_answers_nobody_until_it_is_activated() -> None:
    assert after(("put-inactive", "b")).meaning == {"a"}
    assert after(("put-inactive", "b"), ("activate", "b")).meaning == {"b"}


def test_during_a_canary_both_versions_answer() -> None:
    name = after(("put-inactive", "b"), ("canary", "b"))
    assert name.meaning == {"a", "b"}
    assert effect(name, operation("canary", percent=0.0), "b").meaning == {"a"}


@pytest.mark.parametrize("kind", ["put-broken", "put-abandoned"])
def test_a_damaged_or_abandoned_upload_changes_nothing(kind: Kind) -> None:
    assert after((kind, "b")) == after()


def test_a_version_is_reached_by_its_digest_as_long_as_the_name_has_it() -> None:
    name = after(("put", "b"), ("rollback", None))
    assert name.answered_by("b") == {"b"}
    assert name.answered_by("c") == frozenset()
    pruned = effect(name, operation("delete-version"), "b")
    assert pruned.answered_by("b") == frozenset()
    assert pruned == after()


def test_a_deleted_version_is_forgotten_as_a_place_to_roll_back_to() -> None:
    name = after(("put", "b"), ("put", "a"), ("delete-version", "b"))
    assert name.activations == ("a",)
    canary = after(("put-inactive", "b"), ("canary", "b"), ("delete-version", "b"))
    assert canary.meaning == {"a"}


def test_a_deleted_name_means_nothing() -> None:
    assert after(("put", "b"), ("delete", None)) == Name()


BOTH = Name(frozenset({"a", "b"}), ("a", "b"))


@pytest.fixture
def history() -> History:
    """`name` means a, from a moment in [10, 11] b, from one in [20, 22] nothing."""
    found = History({"name": Name(frozenset({"a"}), ("a",))})
    found.record("name", Change(10.0, 11.0, BOTH))
    found.record("name", Change(20.0, 22.0, Name()))
    return found


@pytest.mark.parametrize(
    ("begin", "end", "allowed"),
    [
        (1.0, 2.0, {"a"}),
        (9.0, 10.5, {"a", "b"}),
        (10.5, 12.0, {"a", "b"}),
        (11.5, 12.0, {"b"}),
        (12.0, 21.0, {"b", None}),
        (9.0, 23.0, {"a", "b", None}),
        (23.0, 24.0, {None}),
    ],
)
def test_a_request_may_meet_what_its_window_overlaps(
    history: History, begin: float, end: float, allowed: set[str | None]
) -> None:
    assert history.allowed("name", begin, end) == allowed


def test_a_request_for_a_version_may_meet_that_version_or_none(history: History) -> None:
    assert history.allowed("name", 1.0, 2.0, "b") == {None}
    assert history.allowed("name", 9.0, 10.5, "b") == {"b", None}
    assert history.allowed("name", 12.0, 13.0, "a") == {"a"}
    assert history.allowed("name", 12.0, 21.0, "a") == {"a", None}


def test_a_name_that_nobody_ever_served_is_a_404(history: History) -> None:
    assert history.allowed("another", 0.0, 100.0) == {None}


def test_a_version_is_settled_only_while_no_call_is_under_way(history: History) -> None:
    assert history.settled("name", 1.0, 2.0) is None
    assert history.settled("name", 12.0, 13.0) == Change(10.0, 11.0, BOTH)
    assert history.settled("name", 12.0, 20.5) is None


def test_the_next_round_starts_from_what_the_last_one_left() -> None:
    ledger = Ledger.of({"name": "a"})
    ledger.book(operation("put"), "b", 1.0, 2.0)
    rested = ledger.rest()
    assert rested.history.allowed("name", 0.0, 1.0) == {"b"}
    assert rested.expected(operation("rollback"), None).meaning == {"a"}
