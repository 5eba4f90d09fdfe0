"""Drafts without a draft model: what followed the last few tokens where they stood before.

Prompt-lookup decoding (Saxena 2023, github.com/apoorvumang/prompt-lookup-decoding). A draft is
verified in the step that computes it (model_runner.py), so it never changes a token, greedy or
sampled; it only costs rows. Whether these pay is decided for each request and step: how often its
drafts were right so far, against what a step of so many rows takes, as measured.

Owns: the places of n-grams in each request's tokens, the requests' acceptance, the costs of steps.
Does not know tensors, cache blocks or clocks: it is told how long steps took.
"""

from collections.abc import Sequence

from tsugiki.engine.request import Request, SamplingParams

NGRAM = 3  # tokens that must recur
MOST_ROWS = 32  # of a step with drafts: with more it is bound by arithmetic, not by reading weights
# Lengths of a draft. With its request's own token it fills half or all of a tile of eight rows, and
# there are few shapes of steps: each new one is recorded first.
LENGTHS = (3, 7)
KEEP = 0.8  # of the acceptance known, at each verification
TRIAL_EVERY = 32  # chances that a request lets go by before it tries again
UNSURE = 2  # measurements until a number of rows is believed to cost what it seems to


def draftable(params: SamplingParams) -> bool:
    """Whether each token's logits depend on the tokens before it through the model alone."""
    return (
        params.min_tokens == 0
        and params.presence_penalty == 0.0
        and params.frequency_penalty == 0.0
        and params.repetition_penalty == 1.0
    )


class StepCosts:
    """Seconds of a step by its rows. The first steps of a size are slow, and few believed."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._measured: dict[int, int] = {}

    def record(self, rows: int, seconds: float) -> None:
        """A step of so many rows took so long."""
        known = self._seconds.get(rows, seconds)
        count = self._measured[rows] = self._measured.get(rows, 0) + 1
        new = min(known, seconds) if count <= UNSURE else KEEP * known + (1 - KEEP) * seconds
        self._seconds[rows] = new

    def ratio(self, rows: int, more: int) -> float:
        """How many times as long a step takes with `more` rows; 1 where that is yet to be tried."""
        if self._measured.get(rows + more, 0) < UNSURE or rows not in self._seconds:
            return 1.0
        return self._seconds[rows + more] / self._seconds[rows]


class Drafter:
    """One request's n-grams, and how often its drafts were right."""

    def __init__(self) -> None:
        self._follows: dict[tuple[int, ...], int] = {}  # n-gram -> where its latest one ended
        self._indexed = NGRAM - 1  # n-grams that end at or before this length are in
        self._right, self._tried = 1.0, 2.0  # decaying counts of drafted tokens
        self._passed = 0  # chances let go by in turn

    def propose(self, request: Request, length: int) -> tuple[int, ...]:
        """So many tokens, or none when the last few tokens are new. Where the earlier place runs
        into the end, the draft goes on as if it repeated itself."""
        tokens = request.num_tokens
        recent = request.tokens(max(0, self._indexed + 1 - NGRAM), tokens)
        for at in range(len(recent) - NGRAM):
            self._indexed += 1
            self._follows[tuple(recent[at : at + NGRAM])] = self._indexed
        start = self._follows.get(tuple(recent[-NGRAM:]))
        if start is None:
            return ()
        known = request.tokens(start, min(tokens, start + length))
        return tuple((known * length)[:length])

    def expected(self, length: int) -> float:
        """How many tokens of a draft so long will be right: each needs all before it."""
        rate = self._right / self._tried
        return sum(rate**n for n in range(1, length + 1))

    def learn(self, drafted: int, right: int) -> None:
        """A draft was verified."""
        self._right = KEEP * self._right + right
        self._tried = KEEP * self._tried + min(right + 1, drafted)
        self._passed = 0

    def pass_by(self) -> None:
        """A draft that did not seem to pay; after many it is given another trial."""
        self._passed += 1
        if self._passed >= TRIAL_EVERY:
            self._right, self._tried, self._passed = 1.0, 2.0, 0


class PromptLookup:
    """Drafts for all requests of a server."""

    def __init__(self) -> None:
        self.num_drafted = 0
        self.num_accepted = 0
        self._costs = StepCosts()
        self._drafters: dict[str, Drafter] = {}

    def drafts(self, requests: Sequence[Request], most: int) -> list[tuple[int, ...]]:
        """A draft for each of these, who all decode in this step, or (). At most `most` tokens in
        all."""
        rows, tokens = len(requests), float(len(requests))
        most = min(most, MOST_ROWS - rows)
        found = []
        for request in requests:
            draft = self._draft(request, rows, tokens, most)
            if draft:
                tokens += self._drafters[request.request_id].expected(len(draft))
            rows, most = rows + len(draft), most - len(draft)
            found.append(draft)
        return found

    def learn(self, request: Request, drafted: int, right: int) -> None:
        """Of a draft of so many tokens, the first `right` were."""
        self.num_drafted += drafted
        self.num_accepted += right
        if (drafter := self._drafters.get(request.request_id)) is not None:
            drafter.learn(drafted, right)

    def record(self, rows: int, seconds: float) -> None:
        """A step in which everybody decoded took so long, drafts among its rows."""
        self._costs.record(rows, seconds)

    def forget(self, request: Request) -> None:
        """A request has ended."""
        self._drafters.pop(request.request_id, None)

    def _draft(self, request: Request, rows: int, tokens: float, most: int) -> tuple[int, ...]:
        left = request.params.max_tokens - len(request.output_token_ids) - 1
        lengths = [length for length in LENGTHS if length <= min(left, most)]
        if not lengths or not draftable(request.params):
            return ()
        drafter = self._drafters.setdefault(request.request_id, Drafter())
        draft = drafter.propose(request, lengths[-1])
        if not draft:
            return ()
        # tokens per second of the step, relative to those without a draft
        gains = {
            length: (tokens + drafter.expected(length)) / tokens / self._costs.ratio(rows, length)
            for length in lengths
        }
        best = max(gains, key=lambda length: gains[length])
        if gains[best] <= 1.0:
            drafter.pass_by()
            return ()
        return draft[:best]
