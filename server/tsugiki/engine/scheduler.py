"""Who computes how many tokens in the next step: continuous batching without tensors.

Owns: the life of every request in the engine, and the step's budget of tokens. There is neither a
prefill nor a decode phase (vLLM v1's idea): each request has `num_computed_tokens`, and each step
gives it some tokens so that they catch up with `num_tokens`. Who lacks just one always gets it;
what is left goes to prompts, begun and new, in the order of tenants.py.
Does not know tensors, text, where variants live (it asks `ready`), who holds which blocks
(seats.py), nor what a step costs (step_budget.py).
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.preemption import share_with_one_more
from tsugiki.engine.prompt_lookup import PromptLookup
from tsugiki.engine.request import FinishReason, Request, RequestStatus
from tsugiki.engine.schedule import Chunk, Limits, SchedulerOutput
from tsugiki.engine.seats import Seats, Verdict
from tsugiki.engine.step_budget import StepBudget
from tsugiki.engine.tenants import Tenants, Turn, turn
from tsugiki.errors import ContextTooLong

Ready = Callable[[Request], bool]


class Scheduler:
    """Requests in, chunks out. `schedule` and `update` alternate, on one thread."""

    def __init__(
        self, blocks: BlockManager, limits: Limits, lookup: PromptLookup | None = None
    ) -> None:
        """`lookup` drafts tokens; None: nobody does."""
        self.blocks = blocks
        self.limits = limits
        self.lookup = lookup
        self.budget = StepBudget(limits.max_num_batched_tokens, limits.step_time_target)
        self.tenants = Tenants()
        self.seats = Seats(
            blocks, self.tenants, limits.max_num_seqs, prefix_caching=limits.prefix_caching
        )
        self._requests: dict[str, Request] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap; some have ended since

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def running(self) -> list[Request]:
        """Those that have a seat."""
        return self.seats.running

    def requests(self) -> list[Request]:
        """Everything that has not finished."""
        return list(self._requests.values())

    def add(self, request: Request) -> None:
        """Take a request into its tenant's queue.

        Raises:
            ContextTooLong: it could not fit even alone.
        """
        tokens = request.max_total_tokens
        if tokens > self.limits.max_model_len or not self.blocks.fits(tokens):
            room = min(self.limits.max_model_len, self.blocks.num_blocks * self.blocks.block_size)
            raise ContextTooLong(
                f"{len(request.prompt_token_ids)} prompt tokens + max_tokens "
                f"{request.params.max_tokens} = {tokens}, but only {room} fit; shorten either"
            )
        self._requests[request.request_id] = request
        self.tenants.add(request)
        if request.deadline is not None:
            heapq.heappush(self._deadlines, (request.deadline, request.request_id))

    def schedule(self, ready: Ready, now: float = 0.0) -> SchedulerOutput:
        """Choose the chunks of the next step and give them cache blocks.

        `ready(request)` says whether its variant can be computed with. A request whose variant is
        not ready is passed over and keeps its place. `now`: seconds, the clock of arrivals.
        """
        output = SchedulerOutput(preempted=self.seats.make_room_to_grow())
        begun, decoding = self._by_tokens_left()
        if begun or self.tenants.num_waiting:
            self._schedule_prompts(begun, len(decoding), ready, now, output)
        self._schedule_decodes(decoding, output)
        if self.lookup is not None and not output.prompt_tokens:
            self._add_drafts(self.lookup, output)
        return output

    def record(self, output: SchedulerOutput, seconds: float) -> None:
        """Learn from how long a step took."""
        self.budget.record(output.decode_rows, output.prompt_tokens, seconds)
        if self.lookup is not None and not output.prompt_tokens:
            self.lookup.record(sum(chunk.num_rows for chunk in output.chunks), seconds)

    def update(self, computed: Iterable[tuple[Chunk, Sequence[int]]]) -> list[Request]:
        """Book one computed step: chunks of requests that still run, each with the tokens that it
        gave: none when it was not complete; all but the last repeat its draft. Returns the requests
        that finished in this step.
        """
        finished = []
        for chunk, token_ids in computed:
            request = chunk.request
            if self.lookup is not None and chunk.draft:
                self.lookup.learn(request, len(chunk.draft), right=len(token_ids) - 1)
            self.seats.advance(request, chunk.num_tokens)
            for number, token_id in enumerate(token_ids):
                if number:
                    # What was drafted before this token was right.
                    self.tenants.charge(request, request.num_computed_tokens + 1)
                    self.seats.advance(request, 1)
                if request.params.max_tokens > 0:
                    request.output_token_ids.append(token_id)
                reason = finish_reason(request)
                if reason is not None:
                    self.finish(request, reason)
                    finished.append(request)
                    break
        return finished

    def finish(self, request: Request, reason: FinishReason) -> None:
        """End a request in whatever state it is, and free what it holds."""
        if self._requests.pop(request.request_id, None) is None:
            return
        if reason is FinishReason.ERROR:
            self.blocks.forget(request.block_table)  # nobody may build on what went wrong
        self.seats.leave(request)
        if self.lookup is not None:
            self.lookup.forget(request)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason

    def abort(self, request_id: str) -> Request | None:
        """End a request on its client's wish; None: it had ended already."""
        request = self._requests.get(request_id)
        if request is not None:
            self.finish(request, FinishReason.ABORT)
        return request

    def expire(self, now: float) -> list[Request]:
        """End the requests, waiting or running, whose deadline has passed."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = self._requests.get(heapq.heappop(self._deadlines)[1])
            if request is not None:
                self.finish(request, FinishReason.TIMEOUT)
                expired.append(request)
        return expired

    def forget(self, digest: str) -> None:
        """Nothing that was computed with this variant is used for new requests."""
        self.blocks.forget(self.blocks.cache.of(digest))

    def _by_tokens_left(self) -> tuple[list[Request], list[Request]]:
        """Running requests that lack several tokens, and those that lack one."""
        begun: list[Request] = []
        decoding: list[Request] = []
        for request in self.running:
            left = request.num_tokens - request.num_computed_tokens
            (decoding if left == 1 else begun).append(request)
        return begun, decoding

    def _schedule_decodes(self, decoding: list[Request], output: SchedulerOutput) -> None:
        """One token for each that still has its seat. They fit: nobody is given a seat in a step
        that has no token for it, so that no more run than a step has tokens."""
        prompts, output.chunks = output.chunks, []
        size = self.blocks.block_size
        for request in decoding:
            if request.status is not RequestStatus.RUNNING:
                continue
            stop = request.num_tokens
            if len(request.block_table) * size < stop:
                self.blocks.extend(request.block_table, stop)
            output.chunks.append(Chunk(request, stop - 1, 1))
            self.tenants.charge(request, stop)
        output.decode_rows = len(output.chunks)
        output.chunks += prompts

    def _add_drafts(self, lookup: PromptLookup, output: SchedulerOutput) -> None:
        """Guesses beside the tokens of those that decode, where they take nobody's blocks."""
        most = self.limits.max_num_batched_tokens - len(output.chunks)
        drafts = lookup.drafts([chunk.request for chunk in output.chunks], most)
        for index, (chunk, draft) in enumerate(zip(output.chunks, drafts, strict=True)):
            table, tokens = chunk.request.block_table, chunk.request.num_tokens + len(draft)
            need = self.blocks.missing(table, tokens)
            if draft and (not need or need + len(self.running) <= self.blocks.num_free):
                self.blocks.extend(table, tokens)
                output.chunks[index] = replace(chunk, draft=draft)

    def _schedule_prompts(
        self,
        begun: list[Request],
        decode_rows: int,
        ready: Ready,
        now: float,
        output: SchedulerOutput,
    ) -> None:
        """The budget, to whoever was served least: begun prompts, and new ones that get a seat."""
        budget = self.budget.prompt_tokens(decode_rows)
        queues = self._queues(begun, {request.tenant for request in output.preempted})
        fair = self.tenants.fair_requests()
        turns = [self._turn(queue, now, fair) for queue in queues.values()]
        heapq.heapify(turns)
        computing: set[bytes] = set()
        closed = False  # somebody lacks blocks
        while turns and budget > 0:
            queue = queues[heapq.heappop(turns)[1]]
            request = queue.popleft()
            verdict = Verdict.ADMITTED
            if request.status is RequestStatus.WAITING:
                verdict = (
                    Verdict.NO_BLOCKS if closed else self._admit(request, ready, computing, output)
                )
            if verdict is Verdict.ADMITTED:
                if not output.prompt_tokens and self.tenants.of(request).running == 1:
                    budget = max(budget, self.budget.newcomer_tokens(decode_rows))
                budget -= self._give(request, budget, computing, output)
            elif verdict is not Verdict.LATER:
                closed = closed or verdict is Verdict.NO_BLOCKS
                queue.clear()  # those behind it wait too
            if queue:
                heapq.heappush(turns, self._turn(queue, now, fair))

    def _queues(self, begun: list[Request], barred: set[str]) -> dict[str, deque[Request]]:
        """By tenant: begun prompts, then waiting ones where there may be a seat. What a tenant just
        gave up is not given to another of its own requests in the same step."""
        queues: dict[str, deque[Request]] = {}
        for request in begun:
            queues.setdefault(request.tenant, deque()).append(request)
        most = self.seats.most_for_weight()
        for tenant in self.tenants.waiting():
            if tenant.name not in barred and share_with_one_more(tenant) < most:
                queues.setdefault(tenant.name, deque()).extend(tenant.waiting)
        return queues

    def _turn(self, queue: deque[Request], now: float, fair: float) -> tuple[Turn, str]:
        tenant = self.tenants.of(queue[0])
        return turn(tenant, queue[0], now, fair), tenant.name

    def _admit(
        self, request: Request, ready: Ready, computing: set[bytes], output: SchedulerOutput
    ) -> Verdict:
        if request in output.preempted or not ready(request):
            return Verdict.LATER
        busy = [chunk.request for chunk in output.chunks]
        verdict, preempted = self.seats.admit(request, computing, busy)
        output.preempted += preempted
        if verdict is Verdict.ADMITTED:
            output.admitted.append(request)
        return verdict

    def _give(
        self, request: Request, budget: int, computing: set[bytes], output: SchedulerOutput
    ) -> int:
        """The next chunk of a prompt; returns its tokens."""
        start = request.num_computed_tokens
        tokens = min(request.num_tokens - start, budget)
        if request.params.prompt_logprobs is not None:
            tokens = min(tokens, self.limits.max_prompt_logprob_tokens)
        output.chunks.append(Chunk(request, start, tokens))
        output.prompt_tokens += tokens
        self.tenants.charge(request, start + tokens)
        computing.update(self.seats.keys_of(request, start, start + tokens))
        return tokens


def finish_reason(request: Request) -> FinishReason | None:
    """Why a request is over after its newest token; None: it goes on."""
    params = request.params
    count = len(request.output_token_ids)
    if count > params.min_tokens and request.output_token_ids[-1] in params.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if count >= params.max_tokens else None
