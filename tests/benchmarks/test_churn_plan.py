"""The plan of a churn round: deterministic, and always possible to carry out."""

from collections import Counter
from dataclasses import replace

from benchmarks.churn.ledger import Ledger
from benchmarks.churn.plan import FIXED_SHARE, Settings, by_popularity, guests, make_plan, others

NAMES = tuple(f"v{number:03}" for number in range(60))
SPARES = tuple(f"s{number}" for number in range(6))
SETTINGS = Settings(
    names=NAMES,
    spares=SPARES,
    seconds=300.0,
    rate=5.0,
    questions=dict.fromkeys((*NAMES, *SPARES), (0, 2)),
    seed=7,
)
PLAN = make_plan(SETTINGS)


def test_the_same_settings_give_the_same_plan() -> None:
    assert make_plan(SETTINGS) == PLAN
    assert make_plan(replace(SETTINGS, seed=8)) != PLAN


def test_fewer_kinds_of_changes_leave_the_arrivals_as_they_are() -> None:
    fewer = make_plan(replace(SETTINGS, episodes=("replace", "retire")))
    assert fewer.arrivals == PLAN.arrivals == PLAN.calm().arrivals
    assert PLAN.calm().operations == PLAN.calm().restore == ()


def test_the_most_popular_name_is_asked_for_about_twice_as_often_as_the_next() -> None:
    counts = Counter(arrival.name for arrival in PLAN.arrivals)
    first, second = by_popularity(SETTINGS)[:2]
    assert 1.4 < counts[first] / counts[second] < 2.9


def test_arrivals_are_within_the_round_at_about_the_rate_and_ask_what_is_known() -> None:
    assert all(0 < arrival.at < SETTINGS.seconds for arrival in PLAN.arrivals)
    assert abs(len(PLAN.arrivals) / (SETTINGS.seconds * SETTINGS.rate) - 1) < 0.1
    assert {arrival.question for arrival in PLAN.arrivals} == {0, 2}


def test_some_requests_are_for_a_version_that_their_name_has_or_may_get() -> None:
    fixed = [arrival for arrival in PLAN.arrivals if arrival.version is not None]
    assert abs(len(fixed) / len(PLAN.arrivals) - FIXED_SHARE) < 0.02
    assert all(a.version in (a.name, *others(SETTINGS, a.name)) for a in fixed)
    uploaded = {(o.name, o.file) for o in PLAN.operations if o.kind.startswith("put")}
    assert any((a.name, a.version) in uploaded for a in fixed if a.version != a.name)


def test_operations_are_in_time_order_and_of_every_kind() -> None:
    times = [operation.at for operation in PLAN.operations]
    assert times == sorted(times)
    assert {operation.kind for operation in PLAN.operations} == {
        "put", "put-inactive", "put-broken", "put-abandoned",
        "activate", "canary", "rollback", "delete", "delete-version",
    }  # fmt: skip


def test_popular_and_unpopular_names_are_changed() -> None:
    ranks = {name: rank for rank, name in enumerate(by_popularity(SETTINGS))}
    changed = {ranks[o.name] for o in PLAN.operations if o.name in ranks}
    assert min(changed) < 5
    assert max(changed) > 30


def test_restoring_leaves_every_name_with_its_own_version_alone() -> None:
    ledger = Ledger.of({name: f"digest of {name}" for name in NAMES})
    before = dict(ledger.names)
    for operation in (*PLAN.operations, *PLAN.restore):
        digest = None if operation.file is None else f"digest of {operation.file}"
        held = ledger.names.get(operation.name)
        if operation.kind == "rollback":
            assert held is not None
            assert len(held.activations) > 1
        if operation.kind == "delete-version":
            assert held is not None
            assert digest in held.versions - {*held.activations[-1:]}
        ledger.book(operation, digest, operation.at, operation.at)
    assert {name: ledger.names[name] for name in NAMES} == before


def test_guests_are_gone_before_the_next_round_unless_the_round_ends_first() -> None:
    changed = {operation.name for operation in PLAN.operations}
    assert set(guests()) & changed
    restored = {operation.name for operation in PLAN.restore}
    assert restored == changed - set(guests())
