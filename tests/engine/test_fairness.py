"""Tenants beside each other: newcomers, weights, priorities, whom a shortage hits."""

from collections import Counter
from collections.abc import Callable

import pytest

from tests.engine.scheduling import scheduler, step
from tsugiki.engine.preemption import MAX_PREEMPTIONS
from tsugiki.engine.request import Request, RequestStatus
from tsugiki.engine.schedule import SchedulerOutput
from tsugiki.engine.scheduler import Scheduler
from tsugiki.engine.tenants import AGING_SECONDS, PATIENCE

RequestFactory = Callable[..., Request]


def tokens_of(output: SchedulerOutput, request: Request) -> int:
    return sum(chunk.num_tokens for chunk in output.chunks if chunk.request is request)


def flood(make: RequestFactory, count: int = 32, prompt: int = 40) -> list[Request]:
    """Long requests of one tenant, no two of the same beginning."""
    return [
        make(prompt=range(100 * i, 100 * i + prompt), tenant="flood", max_tokens=50)
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "limits",
    [
        pytest.param({"seqs": 64, "blocks": 2000, "tokens": 64}, id="prompts that take all tokens"),
        pytest.param({"seqs": 8, "blocks": 2000, "tokens": 512}, id="no seat is free"),
        pytest.param({"seqs": 64, "blocks": 60, "tokens": 512}, id="no block is free"),
        pytest.param({"seqs": 8, "blocks": 96, "tokens": 40}, id="all of it"),
    ],
)
@pytest.mark.parametrize("after", range(0, 30, 3))
def test_under_a_flood_a_newcomer_is_computed_in_its_first_step(
    make_request: RequestFactory, limits: dict[str, int], after: int
) -> None:
    it = scheduler(**limits)
    for request in flood(make_request):
        it.add(request)
    for _ in range(after):
        step(it)
    calm = make_request(prompt=range(7000, 7020), tenant="calm", max_tokens=3)
    it.add(calm)
    assert tokens_of(step(it), calm) == 20
    assert len(calm.output_token_ids) == 1
    step(it)
    step(it)
    assert calm.status is RequestStatus.FINISHED


def test_a_newcomers_short_prompt_is_computed_whole_however_little_time_a_step_has(
    make_request: RequestFactory,
) -> None:
    it = scheduler(seqs=64, tokens=512, blocks=2000, step_time_target=0.01)
    for request in flood(make_request, prompt=400):
        it.add(request)
    for _ in range(20):
        output = step(it)
        it.budget.record(output.decode_rows, output.prompt_tokens, 1.0)
    assert (output.decode_rows > 0, output.prompt_tokens) == (True, 16)
    calm = make_request(prompt=range(7000, 7050), tenant="calm")
    it.add(calm)
    assert tokens_of(step(it), calm) == 50


def test_prompts_of_tenants_that_want_equally_much_end_one_after_the_other(
    make_request: RequestFactory,
) -> None:
    it = scheduler(seqs=8, tokens=16, blocks=500)
    asked = [
        make_request(prompt=range(100 * i, 100 * i + 40), tenant=f"t{i % 4}", max_tokens=1)
        for i in range(8)
    ]
    for request in asked:
        it.add(request)
    ended = []
    for _ in range(20):
        step(it)
        ended.append(sum(request.status is RequestStatus.FINISHED for request in asked))
    assert ended == [(number + 1) * 16 // 40 for number in range(20)]


def test_a_long_prompt_that_has_begun_is_put_off_for_a_tenant_far_behind(
    make_request: RequestFactory,
) -> None:
    it = scheduler(seqs=8, tokens=16, blocks=2000)
    long = make_request(prompt=range(2000), tenant="long", max_tokens=1)
    it.add(long)
    step(it)
    other = make_request(prompt=range(5000, 5100), tenant="other", max_tokens=1)
    it.add(other)
    waited = 0
    while not tokens_of(step(it), other):
        waited += 1
    assert waited == PATIENCE / 16


def test_a_newcomer_takes_some_seats_at_once_and_its_share_in_time(
    make_request: RequestFactory,
) -> None:
    it = scheduler(seqs=8, blocks=2000, tokens=512)
    for request in flood(make_request):
        it.add(request)
    step(it)
    for i in range(20):
        it.add(
            make_request(prompt=range(9000 + 50 * i, 9020 + 50 * i), tenant="new", max_tokens=50)
        )
    step(it)
    assert Counter(r.tenant for r in it.running) == {"flood": 7, "new": 1}
    for _ in range(60):
        step(it)
    assert Counter(r.tenant for r in it.running)["new"] >= 4
    assert it.seats.num_preemptions <= 4


def test_those_that_decode_go_on_beside_any_prompt(make_request: RequestFactory) -> None:
    it = scheduler(seqs=8, tokens=8, blocks=200)
    short = [make_request(prompt=1, max_tokens=30, tenant=f"t{i}") for i in range(3)]
    for request in short:
        it.add(request)
    step(it)
    it.add(make_request(prompt=100, tenant="long"))
    for _ in range(10):
        output = step(it)
        assert [tokens_of(output, request) for request in short] == [1, 1, 1]
        assert output.decode_rows == 3
        assert output.prompt_tokens == 5


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 3.0), (2.0, 0.5)])
def test_backlogged_tenants_get_tokens_by_weight(
    make_request: RequestFactory, weights: tuple[float, float]
) -> None:
    it = scheduler(seqs=8, tokens=64, blocks=1000, prefix_caching=False)
    names = dict(zip("ab", weights, strict=True))
    served: Counter[str] = Counter()
    for number in range(3000):
        waiting = Counter(r.tenant for r in it.requests())
        for name, weight in names.items():
            for _ in range(16 - waiting[name]):  # as many clients, each with its next request
                prompt = 30 if name == "a" else 10
                request = make_request(prompt=prompt, tenant=name, max_tokens=20)
                request.weight = weight
                it.add(request)
        for chunk in step(it).chunks:
            served[chunk.request.tenant] += chunk.num_tokens if number >= 100 else 0
    share = served["a"] / served.total()
    assert share == pytest.approx(weights[0] / sum(weights), rel=0.05)


def test_newcomers_who_keep_coming_do_not_keep_out_who_is_there(
    make_request: RequestFactory,
) -> None:
    it = scheduler(seqs=2, tokens=16, blocks=400)
    for i in range(40):
        it.add(make_request(tenant="stays", prompt=range(50 * i, 50 * i + 8), max_tokens=8))
    for i in range(50):  # as much as can be served
        it.add(make_request(tenant=f"new{i}", prompt=range(5000 + i, 5008 + i), max_tokens=8))
        for _ in range(4):
            step(it)
    assert sum(r.tenant == "stays" for r in it.requests()) <= 36


def test_who_is_gone_is_forgotten_unless_in_debt(make_request: RequestFactory) -> None:
    it = scheduler(seqs=2)
    it.add(make_request(tenant="stays", prompt=4, max_tokens=200))
    it.add(make_request(tenant="indebted", prompt=range(100, 130), max_tokens=1))
    for i in range(20):
        it.add(make_request(tenant=f"t{i}", prompt=range(200 + i, 203 + i), max_tokens=1))
        step(it)
    assert len(it.tenants) <= 8  # of 22
    assert it.tenants.of(make_request(tenant="indebted")).service > 20


def test_what_is_computed_again_is_not_charged(make_request: RequestFactory) -> None:
    it = scheduler(blocks=12, block_size=2, prefix_caching=False)
    requests = [make_request(prompt=6, max_tokens=12) for _ in range(2)]
    for request in requests:
        it.add(request)
    while len(it):
        step(it)
    assert it.seats.num_preemptions
    # the last token of a request is never computed
    assert it.tenants.of(requests[0]).service == sum(r.num_tokens - 1 for r in requests)


def test_a_shortage_hits_who_holds_most_for_its_weight(make_request: RequestFactory) -> None:
    it = scheduler(blocks=14, block_size=2)
    small = make_request(prompt=range(50, 54), max_tokens=20, tenant="small")
    heavy = make_request(prompt=range(80, 88), max_tokens=20, tenant="heavy")
    heavy.weight = 4.0
    large = make_request(prompt=range(8), max_tokens=20, tenant="large")
    for request in (large, heavy, small):  # the youngest is not it
        it.add(request)
    while not it.seats.num_preemptions:
        output = step(it)
    assert output.preempted == [large]


def test_a_request_is_not_preempted_again_and_again(make_request: RequestFactory) -> None:
    it = scheduler(seqs=2, tokens=64, blocks=500)
    requests = flood(make_request, count=2)
    for request in requests:
        it.add(request)
    for i in range(40):
        it.add(make_request(prompt=range(500 + i, 520 + i), tenant=f"new{i}", max_tokens=1))
        step(it)
    assert max(request.preemptions for request in requests) <= MAX_PREEMPTIONS


def order(it: Scheduler, now: float = 0.0, steps: int = 10) -> list[Request]:
    """Who is admitted, one after the other."""
    admitted = []
    for _ in range(steps):
        output = it.schedule(lambda request: True, now)
        it.update([(chunk, (7,) if chunk.completes else ()) for chunk in output.chunks])
        admitted += output.admitted
    return admitted


def prioritised(make: RequestFactory, *priorities: int, **fields: str) -> list[Request]:
    """Requests that come at the same time."""
    requests = [make(prompt=5, max_tokens=1, **fields) for _ in priorities]
    for request, priority in zip(requests, priorities, strict=True):
        request.priority, request.arrival = priority, 0.0
    return requests


def test_of_one_tenant_the_lower_priority_value_goes_first(make_request: RequestFactory) -> None:
    it = scheduler(seqs=1)
    one, two, three, four = prioritised(make_request, 0, 2, -1, 0)
    for request in (one, two, three, four):
        it.add(request)
    assert order(it) == [three, one, four, two]


def test_a_good_priority_takes_nothing_from_others_and_a_bad_one_yields(
    make_request: RequestFactory,
) -> None:
    it = scheduler(seqs=1)
    urgent = prioritised(make_request, -5, -5, tenant="urgent")
    usual = prioritised(make_request, 0, 0, tenant="usual")
    idle = prioritised(make_request, 1, 1, tenant="idle")
    for request in (*idle, *urgent, *usual):
        it.add(request)
    tenants = [request.tenant for request in order(it)]
    assert sorted(tenants[:2]) == sorted(tenants[2:4]) == ["urgent", "usual"]
    assert tenants[4:] == ["idle", "idle"]


def test_a_bad_priority_wears_off_with_waiting(make_request: RequestFactory) -> None:
    it = scheduler(seqs=1)
    (idle,) = prioritised(make_request, 3, tenant="idle")
    usual = prioritised(make_request, *[0] * 5, tenant="usual")
    for request in (idle, *usual):
        it.add(request)
    assert idle not in order(it, now=2.9 * AGING_SECONDS, steps=3)
    assert idle in order(it, now=3 * AGING_SECONDS, steps=1)


def test_equal_prompts_that_come_together_are_computed_once(make_request: RequestFactory) -> None:
    it = scheduler(tokens=64, blocks=200)
    requests = [make_request(prompt=41) for _ in range(4)]
    for request in requests:
        it.add(request)
    first = step(it)
    assert [chunk.request for chunk in first.chunks] == requests[:1]
    second = step(it)
    assert [tokens_of(second, request) for request in requests] == [1, 1, 1, 1]
    assert [request.num_cached_tokens for request in requests] == [0, 40, 40, 40]
