"""Scheduling without a model: budgets, blocks, preemption, fairness, variants that still load."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.engine.scheduling import scheduler, shape, step
from tsugiki.engine.request import (
    FinishReason,
    Request,
    RequestStatus,
    SamplingParams,
    VariantRef,
)
from tsugiki.engine.scheduler import Scheduler
from tsugiki.errors import ContextTooLong

RequestFactory = Callable[..., Request]


def test_a_long_prompt_is_computed_in_chunks_of_the_budget(make_request: RequestFactory) -> None:
    it = scheduler(tokens=8)
    request = make_request(prompt=19, max_tokens=2)
    it.add(request)
    assert [shape(step(it)) for _ in range(4)] == [
        [("r0", 0, 8)],
        [("r0", 8, 8)],
        [("r0", 16, 3)],
        [("r0", 19, 1)],
    ]
    assert request.output_token_ids == [7, 7]
    assert request.finish_reason is FinishReason.LENGTH


def test_a_running_request_decodes_beside_anothers_prompt(make_request: RequestFactory) -> None:
    it = scheduler(tokens=8)
    it.add(make_request(prompt=4))
    step(it)
    it.add(make_request(prompt=range(50, 70)))
    assert shape(step(it)) == [("r0", 4, 1), ("r1", 0, 7)]


def test_a_cold_variant_does_not_block_those_behind_it(make_request: RequestFactory) -> None:
    it = scheduler()
    cold, warm = make_request(digest="cold"), make_request()
    it.add(cold)
    it.add(warm)
    step(it, ready=lambda request: request.variant.digest is None)
    assert cold.status is RequestStatus.WAITING
    assert warm.status is RequestStatus.RUNNING
    output = step(it)
    assert output.admitted == [cold]


def test_the_youngest_is_preempted_and_comes_back_first(make_request: RequestFactory) -> None:
    it = scheduler(blocks=5, block_size=2)
    old, young, later = (make_request(prompt=3, max_tokens=6) for _ in range(3))
    for request in (old, young, later):
        it.add(request)
    step(it)
    assert later.status is RequestStatus.WAITING
    preempted = []
    while not preempted:
        preempted = step(it).preempted
    assert preempted == [young]
    assert (young.num_computed_tokens, young.block_table) == (0, [])
    it.abort(old.request_id)
    output = step(it)
    assert output.admitted[0] is young
    computed = output.chunks[0].start + output.chunks[0].num_tokens
    assert computed == young.num_tokens - 1  # the step sampled one more


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(
    make_request: RequestFactory,
) -> None:
    it = scheduler(blocks=4, block_size=2, max_model_len=100)
    with pytest.raises(ContextTooLong, match=r"5 prompt tokens \+ max_tokens 4 = 9, but only 8"):
        it.add(make_request(prompt=5, max_tokens=4))
    assert len(it) == 0


def test_a_stop_token_ends_a_request_once_min_tokens_are_there(
    make_request: RequestFactory,
) -> None:
    it = scheduler()
    stop = make_request(stop_token_ids=frozenset({7}), max_tokens=3)
    go_on = make_request(stop_token_ids=frozenset({7}), max_tokens=5, min_tokens=2)
    it.add(stop)
    it.add(go_on)
    for _ in range(3):
        step(it)
    assert (stop.finish_reason, stop.output_token_ids) == (FinishReason.STOP, [7])
    assert (go_on.finish_reason, go_on.output_token_ids) == (FinishReason.STOP, [7, 7, 7])


def test_no_tokens_wanted_means_no_tokens(make_request: RequestFactory) -> None:
    it = scheduler()
    request = make_request(max_tokens=0)
    it.add(request)
    step(it)
    assert (request.finish_reason, request.output_token_ids) == (FinishReason.LENGTH, [])


def test_prompt_logprobs_are_computed_in_small_chunks(make_request: RequestFactory) -> None:
    it = scheduler(max_prompt_logprob_tokens=5)
    it.add(make_request(prompt=12, prompt_logprobs=0))
    assert [shape(step(it))[0][2] for _ in range(3)] == [5, 5, 2]


def test_a_tenant_with_a_flood_does_not_keep_another_out(make_request: RequestFactory) -> None:
    it = scheduler(seqs=2, tokens=16)
    for _ in range(10):
        it.add(make_request(tenant="flood", prompt=8, max_tokens=1))
    step(it)
    it.add(make_request(tenant="calm", prompt=8, max_tokens=1))
    admitted = [request.tenant for _ in range(2) for request in step(it).admitted]
    assert "calm" in admitted[:2]


def test_two_backlogged_tenants_are_served_alike(make_request: RequestFactory) -> None:
    it = scheduler(seqs=1, tokens=32)
    for _ in range(40):
        it.add(make_request(tenant="long", prompt=20, max_tokens=1))
        it.add(make_request(tenant="short", prompt=5, max_tokens=1))
    served = {"long": 0, "short": 0}
    for _ in range(30):
        for chunk in step(it).chunks:
            served[chunk.request.tenant] += chunk.num_tokens
    assert abs(served["long"] - served["short"]) <= 20


def test_being_away_earns_a_tenant_no_credit(make_request: RequestFactory) -> None:
    it = scheduler(seqs=1)
    for _ in range(5):
        it.add(make_request(tenant="there", prompt=20, max_tokens=1))
    for _ in range(3):
        step(it)
    for _ in range(3):
        it.add(make_request(tenant="late", prompt=20, max_tokens=1))
    admitted = [step(it).admitted[0].tenant for _ in range(4)]
    assert sorted(admitted) == ["late", "late", "there", "there"]


Arrival = tuple[int, int, int, int, bool]  # prompt, max_tokens, tenant, variant, aborted later
ARRIVALS = st.lists(
    st.tuples(
        st.integers(1, 30), st.integers(0, 12), st.integers(0, 2), st.integers(0, 3), st.booleans()
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    arrivals=ARRIVALS,
    blocks=st.integers(11, 40),
    block_size=st.integers(1, 5),
    seqs=st.integers(1, 5),
    tokens=st.integers(1, 20),
)
def test_every_request_ends_once_within_budget_and_no_block_is_lost(
    arrivals: list[Arrival], blocks: int, block_size: int, seqs: int, tokens: int
) -> None:
    it = scheduler(blocks=blocks, block_size=block_size, seqs=seqs, tokens=tokens)
    expected, ended = set[str](), list[str]()
    for number, (prompt, max_tokens, tenant, variant, aborted) in enumerate(arrivals):
        request = Request(
            request_id=str(number),
            variant=VariantRef("v", f"d{variant}" if variant else None),
            prompt_token_ids=tuple(range(prompt)),
            params=SamplingParams(max_tokens=max_tokens),
            tenant=str(tenant),
            arrival=0.0,
        )
        if prompt + max_tokens > blocks * block_size:
            with pytest.raises(ContextTooLong):
                it.add(request)
            continue
        it.add(request)
        expected.add(request.request_id)
        ended += run_step(it, number)
        if aborted and it.abort(request.request_id) is not None:
            ended.append(request.request_id)
    for number in range(2000):
        if not len(it):
            break
        ended += run_step(it, number)
    assert sorted(ended) == sorted(expected)
    assert it.blocks.num_free == blocks
    assert not it.tenants.num_waiting


def run_step(it: Scheduler, number: int) -> list[str]:
    """One step in which the variants become ready one after another; checks its invariants."""
    output = it.schedule(lambda request: int((request.variant.digest or "d0")[1:]) <= number)
    assert sum(c.num_tokens for c in output.chunks) <= it.limits.max_num_batched_tokens
    assert len(output.chunks) <= len(it.running) <= it.limits.max_num_seqs
    assert all(c.num_tokens > 0 for c in output.chunks)
    assert not {*output.preempted} & {c.request for c in output.chunks}
    for chunk in output.chunks:
        assert chunk.start == chunk.request.num_computed_tokens
        room = len(chunk.request.block_table) * it.blocks.block_size
        assert chunk.start + chunk.num_tokens <= room
    it.blocks.check(r.block_table for r in it.requests())
    finished = it.update([(c, (number,) if c.completes else ()) for c in output.chunks])
    return [request.request_id for request in finished]
