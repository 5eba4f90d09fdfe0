"""Who computes how many tokens in the next step: continuous batching without tensors.

Owns: the queues, every request's counters and block table, and the service each tenant received.
There is neither a prefill nor a decode phase (vLLM v1's idea): each request has
`num_computed_tokens`, and each step gives it some tokens so that they catch up with `num_tokens`.
Does not know tensors, text, time or where variants live (it asks `ready`).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.prefix_cache import block_keys
from tsugiki.engine.request import FinishReason, Request, RequestStatus
from tsugiki.engine.waiting import WaitingQueue
from tsugiki.errors import ContextTooLong

Ready = Callable[[Request], bool]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one step may hold."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    max_prompt_logprob_tokens: int = 64  # of one request in one step: each is a row of logits
    prefix_caching: bool = True


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens `start : start + num_tokens` of a request, computed in one step, and a guess at those
    that come next, computed with them."""

    request: Request
    start: int
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        """Rows of the batch."""
        return self.num_tokens + len(self.draft)

    @property
    def completes(self) -> bool:
        """The request's last known token is in it: its logits choose the next one."""
        return self.start + self.num_tokens == self.request.num_tokens


@dataclass(slots=True)
class SchedulerOutput:
    """One step. The only thing that crosses from the scheduler to the model's side."""

    chunks: list[Chunk] = field(default_factory=list)
    admitted: list[Request] = field(default_factory=list)  # now running, were waiting
    preempted: list[Request] = field(default_factory=list)  # now waiting, were running


class Scheduler:
    """Requests in, chunks out. `schedule` and `update` alternate, on one thread."""

    def __init__(self, blocks: BlockManager, limits: Limits) -> None:
        self.blocks = blocks
        self.limits = limits
        self.running: list[Request] = []  # oldest admission first
        self.waiting = WaitingQueue()
        self.num_preemptions = 0
        self.prefix_queries = 0  # prompt tokens looked up in the prefix cache,
        self.prefix_hits = 0  # and found there
        self._requests: dict[str, Request] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def requests(self) -> list[Request]:
        """Everything that has not finished."""
        return list(self._requests.values())

    def add(self, request: Request) -> None:
        """Take a request into the waiting queue.

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
        self.waiting.add(request)

    def schedule(self, ready: Ready) -> SchedulerOutput:
        """Choose the chunks of the next step and give them cache blocks.

        `ready(request)` says whether its variant can be computed with. A request whose variant is
        not ready is passed over and keeps its place.
        """
        output = SchedulerOutput()
        budget = self._schedule_running(output, self.limits.max_num_batched_tokens)
        if not output.preempted:
            self._admit(output, budget, ready)
        return output

    def update(self, computed: Iterable[tuple[Chunk, Sequence[int]]]) -> list[Request]:
        """Book one computed step: chunks of requests that still run, each with the tokens that it
        gave: none when it was not complete; all but the last repeat its draft. Returns the requests
        that finished in this step.
        """
        finished = []
        for chunk, token_ids in computed:
            request = chunk.request
            self._advance(request, chunk.num_tokens)
            for number, token_id in enumerate(token_ids):
                if number:
                    self._advance(request, 1)  # what was drafted before this token was right
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
        if request.status is RequestStatus.RUNNING:
            self.running.remove(request)
        else:
            self.waiting.remove(request)
        if reason is FinishReason.ERROR:
            self.blocks.forget(request.block_table)  # nobody may build on what went wrong
        self.blocks.free(request.block_table)
        request.status = RequestStatus.FINISHED
        request.finish_reason = reason

    def forget(self, digest: str) -> None:
        """Nothing that was computed with this variant is used for new requests."""
        self.blocks.forget(self.blocks.cache.of(digest))

    def abort(self, request_id: str) -> Request | None:
        """End a request on its client's wish; None: it had ended already."""
        request = self._requests.get(request_id)
        if request is not None:
            self.finish(request, FinishReason.ABORT)
        return request

    def _schedule_running(self, output: SchedulerOutput, budget: int) -> int:
        """Tokens for those that run already, oldest first; returns what is left of the budget."""
        index = 0
        while index < len(self.running) and budget > 0:
            request = self.running[index]
            tokens = self._chunk_tokens(request, budget)
            if not self._make_room(request, request.num_computed_tokens + tokens, output):
                break
            output.chunks.append(Chunk(request, request.num_computed_tokens, tokens))
            self.waiting.charge(request.tenant, tokens)
            budget -= tokens
            index += 1
        return budget

    def _make_room(self, request: Request, tokens: int, output: SchedulerOutput) -> bool:
        """Blocks for so many tokens, taken from the youngest; False: that was itself."""
        while not self.blocks.extend(request.block_table, tokens):
            youngest = self.running.pop()
            self._preempt(youngest)
            output.preempted.append(youngest)
            if youngest is request:
                return False
        return True

    def _preempt(self, request: Request) -> None:
        self.blocks.free(request.block_table)
        request.num_computed_tokens = 0
        request.preemptions += 1
        request.status = RequestStatus.WAITING
        self.num_preemptions += 1
        self.waiting.put_back(request)

    def _admit(self, output: SchedulerOutput, budget: int, ready: Ready) -> None:
        """Let waiting requests run while there are tokens, seats and blocks for them."""
        for request in self.waiting.in_order():
            if budget <= 0 or len(self.running) >= self.limits.max_num_seqs:
                return
            if not ready(request):
                continue
            if not self._admit_blocks(request):
                return  # later ones may be smaller, but would keep this one out for ever
            budget -= self._start(request, budget, output)

    def _start(self, request: Request, budget: int, output: SchedulerOutput) -> int:
        self.waiting.remove(request)
        request.status = RequestStatus.RUNNING
        self.running.append(request)
        output.admitted.append(request)
        tokens = self._chunk_tokens(request, budget)
        output.chunks.append(Chunk(request, request.num_computed_tokens, tokens))
        self.waiting.charge(request.tenant, tokens)
        return tokens

    def _admit_blocks(self, request: Request) -> bool:
        """Blocks for all tokens it has, so that no prefill stops half-way; those that run already
        keep one free block each to grow into. What the prefix cache holds counts as computed."""
        shared = self._cached_prefix(request)
        need = self.blocks.takes(shared, request.num_tokens)
        if need + len(self.running) > self.blocks.num_free:
            return False
        self.blocks.share(request.block_table, shared)
        self.blocks.extend(request.block_table, request.num_tokens)
        request.num_computed_tokens = len(shared) * self.blocks.block_size
        if not request.preemptions:
            self._count_hits(request)
        return True

    def _cached_prefix(self, request: Request) -> list[int]:
        """Blocks that hold its first tokens already. Never its last token, whose logits are wanted,
        and none when the logits of the whole prompt are."""
        if not self.limits.prefix_caching or request.params.prompt_logprobs is not None:
            return []
        full = (request.num_tokens - 1) // self.blocks.block_size
        return self.blocks.cache.match(block_keys(request, full, self.blocks.block_size))

    def _count_hits(self, request: Request) -> None:
        request.num_cached_tokens = request.num_computed_tokens
        self.prefix_queries += request.num_tokens
        self.prefix_hits += request.num_cached_tokens

    def _advance(self, request: Request, tokens: int) -> None:
        """So many more tokens are computed; blocks that are full now can be shared."""
        size = self.blocks.block_size
        first = request.num_computed_tokens // size
        request.num_computed_tokens += tokens
        full = request.num_computed_tokens // size
        if full > first and self.limits.prefix_caching:
            keys, digest = block_keys(request, full, size), request.variant.digest
            for index in range(first, full):
                self.blocks.cache.put(keys[index], request.block_table[index], digest)

    def _chunk_tokens(self, request: Request, budget: int) -> int:
        tokens = min(request.num_tokens - request.num_computed_tokens, budget)
        if request.params.prompt_logprobs is not None:
            tokens = min(tokens, self.limits.max_prompt_logprob_tokens)
        return tokens


def finish_reason(request: Request) -> FinishReason | None:
    """Why a request is over after its newest token; None: it goes on."""
    params = request.params
    count = len(request.output_token_ids)
    if count > params.min_tokens and request.output_token_ids[-1] in params.stop_token_ids:
        return FinishReason.STOP
    return FinishReason.LENGTH if count >= params.max_tokens else None
