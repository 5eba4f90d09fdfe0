"""Drafts out of a request's own tokens: what is proposed, when, and that they change nothing."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.prompt_lookup import (
    LENGTHS,
    MOST_ROWS,
    NGRAM,
    TRIAL_EVERY,
    Drafter,
    PromptLookup,
    StepCosts,
)
from tsugiki.engine.request import Request
from tsugiki.engine.schedule import Chunk, Limits
from tsugiki.engine.scheduler import Scheduler

RequestFactory = Callable[..., Request]
SONG = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]


def looked_up(tokens: Sequence[int], length: int) -> tuple[int, ...]:
    """The definition, without an index."""
    for end in range(len(tokens) - 1, NGRAM - 1, -1):
        if list(tokens[end - NGRAM : end]) == list(tokens[-NGRAM:]):
            return tuple((list(tokens[end:]) * length)[:length])
    return ()


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(
    tokens=st.lists(st.integers(0, 2), min_size=1, max_size=40),
    prompt=st.integers(1, 40),
    steps=st.lists(st.integers(1, 5), max_size=20),
)
def test_a_draft_is_what_followed_the_last_tokens_where_they_stood_last(
    make_request: RequestFactory, tokens: list[int], prompt: int, steps: list[int]
) -> None:
    drafter = Drafter()
    request = make_request(prompt=tokens[:prompt])
    for step in [0, *steps]:
        known = request.num_tokens
        request.output_token_ids += tokens[known : known + step]
        assert drafter.propose(request, 7) == looked_up(tokens[: request.num_tokens], 7)


def test_a_draft_goes_round_where_the_earlier_place_runs_into_the_end(
    make_request: RequestFactory,
) -> None:
    assert Drafter().propose(make_request(prompt=[8, 5, 5, 5, 5]), 4) == (5, 5, 5, 5)
    assert Drafter().propose(make_request(prompt=[1, 2, 1, 2, 1]), 5) == (2, 1, 2, 1, 2)


@pytest.mark.parametrize(
    "params",
    [
        {"presence_penalty": 0.1},
        {"frequency_penalty": 0.1},
        {"repetition_penalty": 1.1},
        {"min_tokens": 1},
        {"max_tokens": LENGTHS[0]},
    ],
)
def test_no_draft_where_a_token_would_change_the_next_ones_logits_or_none_can_follow(
    make_request: RequestFactory, params: dict[str, float]
) -> None:
    asked = {"max_tokens": 50} | params
    assert PromptLookup().drafts([make_request(prompt=SONG, **asked)], 99) == [()]
    assert PromptLookup().drafts([make_request(prompt=SONG, max_tokens=50)], 99) != [()]


def test_drafts_stay_within_the_room_of_the_step_and_of_the_request(
    make_request: RequestFactory,
) -> None:
    requests = [make_request(prompt=SONG, max_tokens=LENGTHS[1]) for _ in range(9)]
    assert [len(d) for d in PromptLookup().drafts(requests, 8)] == [3, 3, *[0] * 7]
    many = [make_request(prompt=SONG, max_tokens=50) for _ in range(20)]
    assert 0 < sum(map(len, PromptLookup().drafts(many, 500))) <= MOST_ROWS - 20


def drafts_in_turn(lookup: PromptLookup, request: Request, times: int, right: int) -> list[int]:
    """How long the drafts of successive steps are, when so many tokens of each are right."""
    lengths = []
    for _ in range(times):
        (draft,) = lookup.drafts([request], 99)
        lengths.append(len(draft))
        if draft:
            lookup.learn(request, len(draft), right)
        lookup.record(1 + len(draft), 1.0 + 0.05 * len(draft))
    return lengths


def test_drafting_stops_when_it_does_not_pay_and_is_tried_again(
    make_request: RequestFactory,
) -> None:
    request = make_request(prompt=SONG, max_tokens=500)
    lookup = PromptLookup()
    drafts_in_turn(lookup, make_request(prompt=[1]), 2, 0)  # what a step of one row takes
    lengths = drafts_in_turn(lookup, request, 3 * TRIAL_EVERY, right=0)
    drafted = [i for i, length in enumerate(lengths) if length]
    assert 0 < len(drafted) < TRIAL_EVERY
    assert drafted[-1] > TRIAL_EVERY


def test_drafting_goes_on_and_grows_when_it_pays(make_request: RequestFactory) -> None:
    lookup = PromptLookup()
    drafts_in_turn(lookup, make_request(prompt=[1]), 2, 0)
    lengths = drafts_in_turn(lookup, make_request(prompt=SONG, max_tokens=500), 30, right=3)
    assert min(lengths) >= LENGTHS[0]
    assert lookup.num_drafted == sum(lengths)
    assert lookup.num_accepted == 3 * 30


def test_rows_that_cost_as_much_as_steps_are_not_bought(make_request: RequestFactory) -> None:
    lookup = PromptLookup()
    for _ in range(3):
        for rows in (1, *(1 + length for length in LENGTHS)):
            lookup.record(rows, float(rows))
    assert lookup.drafts([make_request(prompt=SONG, max_tokens=50)], 99) == [()]


def test_the_first_slow_step_of_a_size_is_not_believed() -> None:
    costs = StepCosts()
    for rows, seconds in ((1, 1.0), (8, 9.0), (8, 1.5)):
        assert costs.ratio(1, 7) == 1.0
        costs.record(rows, seconds)
    assert costs.ratio(1, 7) == 1.5


def test_a_scheduler_that_drafts_gives_the_same_tokens_in_fewer_steps(
    make_request: RequestFactory,
) -> None:
    plain, drafted = (
        answers(make_request, PromptLookup() if drafting else None) for drafting in (False, True)
    )
    assert drafted[0] == plain[0]
    assert drafted[1] < 0.6 * plain[1]


def answers(
    make_request: RequestFactory, lookup: PromptLookup | None
) -> tuple[list[list[int]], int]:
    """What three requests say whose model counts round in circles, and the steps it took."""
    it = Scheduler(BlockManager(64, 4), Limits(8, 32, 256), lookup)
    requests = [make_request(prompt=[i], max_tokens=40, min_tokens=0) for i in (2, 7, 30)]
    for request in requests:
        it.add(request)
    steps = 0
    while it.requests():
        output = it.schedule(lambda _: True)
        for chunk in output.chunks:
            assert chunk.start + chunk.num_rows <= 4 * len(chunk.request.block_table)
        it.update([(chunk, verified(chunk)) for chunk in output.chunks])
        it.record(output, 1.0)
        it.blocks.check(r.block_table for r in it.requests())
        steps += 1
    return [request.output_token_ids for request in requests], steps


def verified(chunk: Chunk) -> list[int]:
    """The tokens that a model gives for a chunk, which says p % 9 after p tokens."""
    tokens = []
    for offset, drafted in enumerate((*chunk.draft, None)):
        tokens.append((chunk.request.num_tokens + offset) % 9)
        if drafted != tokens[-1]:
            break
    return tokens
