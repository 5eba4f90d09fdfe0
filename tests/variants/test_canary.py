"""Which version answers whom while a canary runs, and how it ends."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.variants.text_files import digest_of, open_registry, put
from tsugiki.errors import Conflict, InvalidRequest, ModelNotFound
from tsugiki.variants.canary import drawn
from tsugiki.variants.registry import Registry

OLD, NEW = digest_of("old"), digest_of("new")
USERS = [f"user {i}" for i in range(400)]


def with_canary(root: Path, percent: float = 25) -> Registry:
    registry = open_registry(root)
    put(registry, "bank", "old")
    put(registry, "bank", "new", activate=False)
    assert registry.canary("bank", NEW, percent).canary_percent == percent
    return registry


def share(registry: Registry) -> float:
    """Percent of the users that the canary answers."""
    answers = [registry.resolve("bank", user).digest for user in USERS]
    return 100 * answers.count(NEW) / len(answers)


@settings(max_examples=50)
@given(
    percent=st.floats(0, 100),
    name=st.text(min_size=1, max_size=20),
    digest=st.text("0123456789abcdef", min_size=64, max_size=64),
)
def test_the_share_of_users_is_exact_within_sampling_noise(
    percent: float, name: str, digest: str
) -> None:
    count = 2000
    users = sum(drawn(name, digest, f"user {i}", percent) for i in range(count))
    p = percent / 100
    assert abs(users - count * p) <= 6 * math.sqrt(count * p * (1 - p)) + 1


@given(user=st.text(min_size=1), low=st.floats(0, 100), high=st.floats(0, 100))
def test_a_user_of_a_small_share_is_one_of_every_larger_share(
    user: str, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    assert drawn("bank", NEW, user, high) >= drawn("bank", NEW, user, low)
    assert drawn("bank", NEW, user, 100)
    assert not drawn("bank", NEW, user, 0)


def test_another_version_draws_other_users() -> None:
    draws = [{u for u in USERS if drawn("bank", digest, u, 25)} for digest in (OLD, NEW)]
    assert len(draws[0] & draws[1]) < 0.5 * len(draws[0])


def test_users_stay_where_they_are_also_after_a_restart(root: Path) -> None:
    registry = with_canary(root)
    assert 15 < share(registry) < 35
    again = open_registry(root)
    assert [again.resolve("bank", u) for u in USERS] == [registry.resolve("bank", u) for u in USERS]


@pytest.mark.parametrize("user", [None, ""])
def test_without_a_user_the_active_version_answers(root: Path, user: str | None) -> None:
    registry = with_canary(root, 100)
    assert registry.resolve("bank", user).digest == OLD
    assert registry.resolve("bank", "somebody").digest == NEW


def test_a_fixed_version_is_no_matter_of_users(root: Path) -> None:
    registry = with_canary(root, 100)
    assert registry.resolve(f"bank@{OLD}", "somebody").digest == OLD
    assert registry.resolve("bank").canary_percent == 0


ENDS: dict[str, tuple[Callable[[Registry], object], str]] = {
    "ended": (lambda r: r.canary("bank", NEW, 0), OLD),
    "rolled back": (lambda r: r.rollback("bank"), OLD),
    "active one activated": (lambda r: r.activate("bank", OLD), OLD),
    "promoted": (lambda r: r.activate("bank", NEW), NEW),
    "promoted by upload": (lambda r: put(r, "bank", "new"), NEW),
    "deleted": (lambda r: r.delete_version("bank", NEW), OLD),
    "overtaken": (lambda r: put(r, "bank", "third"), digest_of("third")),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_canary_ends_for_everybody_and_for_good(root: Path, end: str) -> None:
    act, answering = ENDS[end]
    registry = with_canary(root)
    act(registry)
    for present in (registry, open_registry(root)):
        assert {present.resolve("bank", user).digest for user in [*USERS, None]} == {answering}
        assert [v.canary_percent for v in present.versions() if v.canary_percent] == []


def test_an_upload_that_is_not_activated_leaves_the_canary(root: Path) -> None:
    registry = with_canary(root)
    put(registry, "bank", "third", activate=False)
    assert 15 < share(registry) < 35


def test_a_new_percentage_or_version_replaces_the_canary(root: Path) -> None:
    registry = with_canary(root, 25)
    before = {user for user in USERS if registry.resolve("bank", user).digest == NEW}
    registry.canary("bank", NEW, 50)
    after = {user for user in USERS if registry.resolve("bank", user).digest == NEW}
    assert before < after
    put(registry, "bank", "third", activate=False)
    registry.canary("bank", digest_of("third"), 100)
    assert registry.resolve("bank", "somebody").digest == digest_of("third")
    assert registry.rollback("bank").digest == OLD


def test_ending_a_canary_that_does_not_run_changes_nothing(root: Path) -> None:
    registry = with_canary(root)
    before = registry.history("bank")
    assert registry.canary("bank", OLD, 0).active
    assert registry.history("bank") == before
    assert 15 < share(registry) < 35


@pytest.mark.parametrize("percent", [-1, 100.1, math.nan, math.inf])
def test_a_percentage_beyond_0_to_100_is_refused(root: Path, percent: float) -> None:
    registry = with_canary(root)
    with pytest.raises(InvalidRequest, match="0 to 100"):
        registry.canary("bank", NEW, percent)


def test_a_canary_needs_a_known_version_and_another_active_one(root: Path) -> None:
    registry = with_canary(root)
    with pytest.raises(ModelNotFound):
        registry.canary("bank", digest_of("nothing"), 10)
    with pytest.raises(Conflict, match="it is the active version"):
        registry.canary("bank", OLD, 10)
    put(registry, "idle", "old", activate=False)
    with pytest.raises(Conflict, match="no version is active"):
        registry.canary("idle", OLD, 10)


def test_a_canary_that_cannot_be_served_leaves_everybody_on_the_active_version(root: Path) -> None:
    registry = with_canary(root, 100)
    registry.path(NEW).write_text("rot")
    registry = open_registry(root)
    assert registry.resolve("bank", "somebody").digest == OLD
    assert [v.error for v in registry.versions()] == [None, "not good"]


def test_the_history_tells_what_happened_when_and_survives_a_restart(root: Path) -> None:
    registry = with_canary(root, 25)
    registry.canary("bank", NEW, 0)
    registry.activate("bank", NEW)
    registry.rollback("bank")
    registry.delete_version("bank", NEW)
    told = [(entry.action, entry.digest, entry.percent) for entry in registry.history("bank")]
    assert told == [
        ("upload", OLD, None),
        ("activate", OLD, None),
        ("upload", NEW, None),
        ("canary", NEW, 25),
        ("canary", NEW, 0),
        ("activate", NEW, None),
        ("rollback", OLD, None),
        ("delete", NEW, None),
    ]
    times = [entry.at for entry in registry.history("bank")]
    assert times == sorted(times)
    assert abs(times[0] - (root / ".tsugiki/aliases/bank.json").stat().st_mtime) < 60
    assert open_registry(root).history("bank") == registry.history("bank")
    with pytest.raises(ModelNotFound):
        registry.history("nobody")
