"""Prefixes computed once: who shares with whom, what is counted, what is dropped when."""

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tests.engine.scheduling import scheduler, shape, step
from tsugiki.engine.core import EngineCore
from tsugiki.engine.prefix_cache import PrefixCache, block_keys
from tsugiki.engine.request import FinishReason, Request

RequestFactory = Callable[..., Request]
CoreFactory = Callable[..., EngineCore]


def keys(request: Request, count: int = 2) -> list[bytes]:
    return block_keys(request, count, 4)


def finish(core: EngineCore, *requests: Request) -> None:
    for request in requests:
        core.add(request)
    for _ in range(500):
        core.step()
        if not len(core.scheduler):
            return


def test_a_key_says_variant_salt_and_every_token_up_to_its_end(
    make_request: RequestFactory,
) -> None:
    one = keys(make_request(prompt=9))
    assert keys(make_request(prompt=8, max_tokens=5)) == one
    assert len(set(one)) == 2
    late = keys(make_request(prompt=[10, 11, 12, 13, 14, 15, 16, 99]))
    early = keys(make_request(prompt=[99, 11, 12, 13, 14, 15, 16, 17]))
    assert (late[0] == one[0], late[1] == one[1]) == (True, False)
    assert not {*early} & {*one}
    others = [make_request(prompt=8, digest="a"), make_request(prompt=8), make_request(prompt=8)]
    others[1].cache_salt, others[2].cache_salt = "a", ""
    assert len({key for other in others for key in keys(other)} | {*one}) == 8


def test_generated_tokens_have_the_keys_that_they_have_in_a_prompt(
    make_request: RequestFactory,
) -> None:
    generated = make_request(prompt=[1, 2, 3], output=[4, 5, 6, 7, 8])
    assert keys(generated) == keys(make_request(prompt=range(1, 9)))


def test_the_second_request_computes_only_what_the_first_did_not(
    make_request: RequestFactory,
) -> None:
    it = scheduler()
    it.add(make_request(prompt=10, max_tokens=1))
    step(it)
    second = make_request(prompt=[*range(10, 20), 7, 7], max_tokens=1)
    it.add(second)
    assert shape(step(it)) == [("r1", 8, 4)]
    assert second.num_cached_tokens == 8
    assert (it.seats.prefix_queries, it.seats.prefix_hits) == (22, 8)


def test_the_last_token_is_computed_again_even_in_a_full_block(
    make_request: RequestFactory,
) -> None:
    it = scheduler()
    for _ in range(2):
        it.add(make_request(prompt=8, max_tokens=1))
        output = step(it)
    assert shape(output) == [("r1", 4, 4)]


def test_a_running_prefix_is_shared_without_a_copy(make_request: RequestFactory) -> None:
    it = scheduler()
    first, second = make_request(prompt=9), make_request(prompt=9)
    it.add(first)
    step(it)
    it.add(second)
    step(it)
    assert first.block_table[:2] == second.block_table[:2]
    assert first.block_table[2] != second.block_table[2]
    it.blocks.check([first.block_table, second.block_table])


def test_neither_another_variant_nor_another_salt_hits(make_request: RequestFactory) -> None:
    it = scheduler()
    salted = make_request(prompt=9)
    salted.cache_salt = "mine"
    requests = [make_request(prompt=9), make_request(prompt=9, digest="a"), salted]
    for request in requests:
        it.add(request)
        step(it)
    assert it.seats.prefix_hits == 0
    assert len({block for request in requests for block in request.block_table}) == 9


def test_prompt_logprobs_are_never_taken_from_the_cache(make_request: RequestFactory) -> None:
    it = scheduler()
    it.add(make_request(prompt=12, max_tokens=1))
    step(it)
    it.add(make_request(prompt=12, max_tokens=1, prompt_logprobs=0))
    assert shape(step(it)) == [("r1", 0, 12)]


def test_without_prefix_caching_nothing_is_shared(make_request: RequestFactory) -> None:
    it = scheduler(prefix_caching=False)
    for _ in range(2):
        it.add(make_request(prompt=12))
        step(it)
    assert (it.seats.prefix_hits, len(it.blocks.cache)) == (0, 0)


def test_a_preempted_request_goes_on_from_what_is_still_there(
    make_request: RequestFactory,
) -> None:
    it = scheduler(blocks=6, block_size=2)
    requests = [make_request(prompt=range(i, i + 4), max_tokens=8) for i in (0, 40)]
    for request in requests:
        it.add(request)
    while not it.seats.num_preemptions:
        step(it)
    it.abort(requests[0].request_id)
    (chunk,) = step(it).chunks
    assert chunk.request is requests[1]
    assert chunk.start >= 4
    assert requests[1].num_cached_tokens == 0, "it is what the first admission found"


def test_blocks_of_a_variant_that_is_unloaded_are_dropped(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    finish(core, make_request(prompt=9, digest="a"), make_request(prompt=9))
    cache = core.scheduler.blocks.cache
    assert cache.of("a")
    core.unload("a")
    assert not cache.of("a")
    assert cache.of(None)
    core.scheduler.blocks.check([])
    again = make_request(prompt=9, digest="a")
    finish(core, again)
    assert again.num_cached_tokens == 0


def test_blocks_of_an_evicted_variant_are_dropped(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(budget=10)  # room for one variant
    finish(core, make_request(prompt=9, digest="a"))
    finish(core, make_request(prompt=9, digest="b"))
    assert not core.scheduler.blocks.cache.of("a")
    assert core.scheduler.blocks.cache.of("b")


def test_nobody_builds_on_what_a_failed_request_computed(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core(tokens=8)
    sick = make_request(prompt=20)
    core._runner.not_finite = {sick.request_id}  # type: ignore[attr-defined]
    finish(core, sick)
    assert sick.finish_reason is FinishReason.ERROR
    well = make_request(prompt=20)
    finish(core, well)
    assert well.num_cached_tokens == 0
    assert well.finish_reason is FinishReason.LENGTH


def test_events_say_how_much_of_the_prompt_was_cached(
    make_core: CoreFactory, make_request: RequestFactory
) -> None:
    core = make_core()
    finish(core, make_request(prompt=13))
    core.add(make_request(prompt=13, max_tokens=1))
    (event,) = core.step()
    assert event.cached_tokens == 12


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 2)), max_size=60))
def test_keys_and_blocks_are_one_to_one(steps: list[tuple[int, int, int]]) -> None:
    """A key of 0 means: forget the block. Checked against a plain list of what is known."""
    cache = PrefixCache()
    known: dict[bytes, tuple[int, str]] = {}
    for number, block, owner in steps:
        key, digest = b"%d" % number, f"d{owner}"
        if number == 0:
            cache.forget(block)
            known = {k: v for k, v in known.items() if v[0] != block}
        else:
            cache.put(key, block, digest)
            if block not in {b for b, _ in known.values()}:
                known.setdefault(key, (block, digest))
        assert len(cache) == len(known)
        for k, (b, d) in known.items():
            assert cache.match([k]) == [b]
            assert b in cache
            assert b in cache.of(d)
