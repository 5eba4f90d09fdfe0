"""Two tiers: what stays where, what is counted, who is told."""

from tests.variants.stepped_source import Part, Shared, SteppedSource, resident
from tsugiki.variants.loader import LoadOutcome
from tsugiki.variants.loads import LoadTotals
from tsugiki.variants.residency import EVICTED, Residency
from tsugiki.variants.tier import Tier

Transition = tuple[str, str, str, str | None]


class Scene:
    """A residency over a stepped source, with all that it told."""

    def __init__(
        self,
        device: int,
        host: int,
        shared: dict[str, Shared] | None = None,
        *,
        idle: int = 0,
        **sizes: int,
    ) -> None:
        self.source = SteppedSource(sizes, shared)
        self.told: list[Transition] = []
        self.residency = Residency(
            self.source,
            device,
            host_bytes=host,
            idle_bytes=idle,
            on_transition=lambda *transition: self.told.append(transition),
        )

    def load(self, *digests: str) -> list[LoadOutcome]:
        outcomes = []
        for digest in digests:
            self.residency.request(digest)
            self.source.run()
            outcomes += self.residency.poll()
        return outcomes

    def state(self, digest: str) -> str:
        return self.residency.snapshot()[digest].state


def test_what_the_device_evicts_stays_on_host_and_is_not_read_again() -> None:
    scene = Scene(40, 100, a=40, b=40)
    scene.load("a", "b")
    assert (scene.state("a"), scene.state("b")) == ("host", "ready")
    scene.load("a")
    assert (scene.state("a"), scene.state("b")) == ("ready", "host")
    assert scene.source.submitted["a"] == 2
    assert scene.source.read["a"] == 1


def test_the_host_keeps_what_was_used_last() -> None:
    scene = Scene(40, 80, a=40, b=40, c=40)
    scene.load("a", "b", "c")
    assert [scene.state(digest) for digest in "abc"] == ["disk", "host", "ready"]
    scene.load("b")
    assert scene.source.read["b"] == 1
    scene.load("a")
    assert scene.source.read["a"] == 2


def test_without_a_host_budget_evicted_means_disk() -> None:
    scene = Scene(40, 0, a=40, b=40)
    scene.load("a", "b")
    assert scene.state("a") == "disk"
    assert scene.residency.stats()[0].bytes == 0


def test_content_beyond_the_hosts_budget_takes_nobodys_place() -> None:
    scene = Scene(100, 50, a=40, b=60)
    scene.load("a", "b")
    host, _ = scene.residency.stats()
    assert (host.variants, host.bytes, host.evictions) == (1, 40, 0)


def test_unloading_frees_both_tiers_and_says_how_much() -> None:
    scene = Scene(100, 100, a=40)
    scene.load("a")
    assert scene.residency.unload("a") == 80
    assert [tier.bytes for tier in scene.residency.stats()] == [0, 0]
    assert scene.state("a") == "disk"


def test_what_fails_leaves_the_host_too() -> None:
    scene = Scene(40, 100, a=40, b=40)
    scene.load("a", "b")
    del scene.source.sizes["a"]
    (outcome,) = scene.load("a")  # from host, and staging fails
    assert outcome.error == "no such file"
    assert scene.residency.stats()[0].variants == 1
    scene.residency.fail("b", "non-finite logits")
    assert scene.residency.stats()[0].variants == 0


def test_hits_misses_evictions_and_seconds_are_counted() -> None:
    scene = Scene(40, 100, a=40, b=40)
    for digest in ("a", "b", "a", "a"):
        if not scene.residency.look_up(digest):
            scene.load(digest)
    host, device = scene.residency.stats()
    assert (device.name, device.hits, device.misses, device.evictions) == ("device", 1, 3, 2)
    assert (host.name, host.hits, host.misses, host.evictions) == ("host", 1, 2, 0)
    assert (device.budget_bytes, device.bytes, device.variants) == (40, 40, 1)
    assert (host.budget_bytes, host.bytes, host.variants) == (100, 80, 2)
    assert scene.residency.loads == LoadTotals(3, read=2.0, verify=4.0, stage=9.0)
    timings = scene.residency.snapshot()["a"].timings
    assert timings is not None
    assert (timings.read, timings.stage) == (0.0, 3000)


def test_every_change_of_state_is_told_with_its_reason() -> None:
    scene = Scene(40, 40, a=40, b=40)
    scene.load("a", "b", "gone")
    scene.residency.unload("b")
    assert scene.told == [
        ("a", "disk", "loading", None),
        ("a", "loading", "ready", None),
        ("b", "disk", "loading", None),
        ("a", "ready", "disk", EVICTED),
        ("b", "loading", "ready", None),
        ("gone", "disk", "loading", None),
        ("gone", "loading", "failed", "no such file"),
        ("b", "ready", "disk", "unloaded"),
    ]


def test_what_variants_share_counts_once_while_anybody_holds_it() -> None:
    mask: Shared = (Part("mask", 30),)
    scene = Scene(100, 0, {"a": mask, "b": mask}, a=20, b=20, c=10)
    scene.load("a", "b")
    device = scene.residency.stats()[1]
    assert (device.bytes, device.shared_bytes) == (70, 30)
    assert scene.residency.unload("a") == 20
    assert scene.residency.unload("b") == 50
    assert scene.residency.resident_bytes == 0


def test_eviction_goes_on_until_enough_is_really_free() -> None:
    mask: Shared = (Part("mask", 60),)
    scene = Scene(100, 0, {"a": mask, "b": mask}, a=20, b=20, c=80)
    scene.load("a", "b", "c")
    assert scene.residency.take_evicted() == ["a", "b"]


def test_a_part_that_the_newcomer_shares_is_neither_paid_twice_nor_freed() -> None:
    mask: Shared = (Part("mask", 60),)
    scene = Scene(100, 0, {"a": mask, "b": mask, "c": mask}, a=20, b=20, c=40)
    scene.load("a", "b", "c")
    assert scene.residency.take_evicted() == ["a", "b"]
    assert scene.residency.resident_bytes == 100


def test_what_was_shared_stays_for_the_next_who_wants_it() -> None:
    mask: Shared = (Part("mask", 30),)
    scene = Scene(100, 0, {"a": mask, "b": mask}, idle=40, a=20, b=20)
    scene.load("a")
    assert scene.residency.unload("a") == 20
    device = scene.residency.stats()[1]
    assert (device.bytes, device.shared_bytes, device.variants) == (30, 30, 0)
    scene.load("b")
    assert scene.residency.resident_bytes == 50


def test_idle_parts_leave_before_any_variant_does() -> None:
    scene = Scene(100, 0, {"a": (Part("mask", 40),)}, idle=40, a=20, b=40, c=60)
    scene.load("a", "b")
    scene.residency.unload("a")
    assert scene.residency.resident_bytes == 80
    scene.load("c")
    assert scene.residency.take_evicted() == []
    assert scene.residency.resident_bytes == 100


def test_idle_parts_keep_to_their_share_and_the_oldest_goes_first() -> None:
    shared: dict[str, Shared] = {name: (Part(f"mask {name}", 20),) for name in "abc"}
    scene = Scene(1000, 0, shared, idle=50, a=10, b=10, c=10)
    scene.load("a", "b", "c")
    for digest in "abc":
        scene.residency.unload(digest)
    assert scene.residency.resident_bytes == 40
    scene.load("c")
    assert scene.residency.resident_bytes == 50
    scene.load("a")
    assert scene.residency.resident_bytes == 80


def test_a_variant_too_large_with_its_share_is_refused() -> None:
    scene = Scene(100, 0, {"a": (Part("mask", 60),)}, a=50)
    (outcome,) = scene.load("a")
    assert "110 bytes" in str(outcome.error)
    assert scene.state("a") == "failed"


def test_no_victims_are_named_when_all_of_them_are_not_enough() -> None:
    tier = Tier[object]("device", 50)  # type: ignore[type-var]
    tier.put("a", resident("a", 20))
    tier.put("b", resident("b", 30))
    assert tier.victims(resident("c", 40), ["a"]) is None
    assert tier.victims(resident("c", 40), ["b", "a"]) == ["b", "a"]
    assert tier.victims(resident("c", 30), ["b", "a"]) == ["b"]
    assert tier.bytes == 50
