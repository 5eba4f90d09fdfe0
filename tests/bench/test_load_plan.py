"""What is asked and when: reproducible, and distributed as promised."""

import asyncio
import random
from collections import Counter
from itertools import pairwise

import pytest

from tsugiki.bench.arrivals import ClosedLoop, OpenLoop
from tsugiki.bench.workload import GivenPrompts, TokenPrompts, WordPrompts, Workload

MODELS = ("a", "b", "c")


def models(workload: Workload, requests: int) -> Counter[str]:
    return Counter(workload.ask(number, 0).model for number in range(requests))


def test_the_same_seed_asks_the_same_and_another_seed_does_not() -> None:
    first, again, other = (Workload(MODELS, seed=seed).ask(3, 1) for seed in (1, 1, 2))
    assert first == again
    assert first.prompt != other.prompt


def test_no_prompt_comes_twice_nor_in_the_warm_up() -> None:
    workload = Workload(MODELS)
    asks = [workload.ask(slot, turn) for slot in range(4) for turn in range(4)]
    prompts = {tuple(ask.prompt) for ask in [*asks, *map(workload.warm, range(4))]}
    assert len(prompts) == 20


def test_distinct_gives_every_slot_its_own_model_for_good() -> None:
    workload = Workload(MODELS)
    assert [workload.ask(slot, slot).model for slot in range(5)] == ["a", "b", "c", "a", "b"]


def test_uniform_and_zipf_choose_by_their_weights() -> None:
    uniform = models(Workload(MODELS, distribution="uniform"), 3000)
    assert all(abs(count - 1000) < 120 for count in uniform.values())
    zipf = models(Workload(MODELS, distribution="zipf", zipf_alpha=1.0), 3000)
    expected = {"a": 1636, "b": 818, "c": 545}  # 3000 / (1 + 1/2 + 1/3) / k
    assert all(abs(zipf[name] - count) < 120 for name, count in expected.items())


def test_prompts_share_their_prefix_and_nothing_behind_it() -> None:
    workload = Workload(MODELS, TokenPrompts((8, 8), (10, 1000), prefix=20))
    first, second = workload.ask(0, 0).prompt, workload.ask(1, 0).prompt
    assert len(first) == 28
    assert first[:20] == second[:20]
    assert first[20:] != second[20:]


def test_lengths_and_ids_stay_in_their_ranges() -> None:
    prompts = TokenPrompts((3, 5), (10, 11))
    drawn = [prompts.draw(random.Random(seed)) for seed in range(60)]
    assert {len(prompt) for prompt in drawn} == {3, 4, 5}
    assert {token for prompt in drawn for token in prompt} == {10, 11}


def test_text_prompts_are_words_or_lines_of_a_file() -> None:
    assert len(WordPrompts((9, 9), prefix=2).draw(random.Random(1)).split()) == 11
    assert GivenPrompts(["one", "two"]).draw(random.Random(1)) in ("one", "two")


def test_the_share_of_clients_that_leave_is_kept() -> None:
    workload = Workload(MODELS, disconnect=0.25, max_tokens=10)
    asks = [workload.ask(slot, 0) for slot in range(800)]
    leaving = [ask.leave_after for ask in asks if ask.leave_after is not None]
    assert len(leaving) == pytest.approx(200, abs=40)
    assert set(leaving) == set(range(1, 11))


def test_poisson_arrivals_keep_their_rate() -> None:
    times = list(OpenLoop(50.0, requests=5000).times())
    gaps = [b - a for a, b in pairwise(times)]
    assert times == list(OpenLoop(50.0, requests=5000).times())
    assert sum(gaps) / len(gaps) == pytest.approx(0.02, rel=0.05)
    # exponential: the standard deviation is the mean
    assert sum(gap**2 for gap in gaps) / len(gaps) == pytest.approx(2 * 0.02**2, rel=0.1)
    assert all(moment < 3 for moment in OpenLoop(50.0, None, seconds=3).times())


def test_a_closed_loop_sends_a_slots_next_request_when_its_last_one_ended() -> None:
    running = Counter[int]()

    async def send(slot: int, turn: int, begin: float) -> tuple[int, int]:
        running[slot] += 1
        assert running[slot] == 1
        await asyncio.sleep(0)
        running[slot] -= 1
        return slot, turn

    results = asyncio.run(ClosedLoop(3, turns=2).run(send))
    assert results == [(slot, turn) for slot in range(3) for turn in range(2)]


def test_an_open_loop_does_not_wait_for_answers() -> None:
    async def run() -> list[int]:
        all_sent = asyncio.Event()

        async def send(slot: int, turn: int, begin: float) -> int:
            if slot == 9:
                all_sent.set()
            await all_sent.wait()  # the first answers come after the last request
            return slot

        return await OpenLoop(10_000.0, requests=10).run(send)

    assert asyncio.run(run()) == list(range(10))
