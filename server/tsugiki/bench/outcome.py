"""What became of one request: plain data between the client and the statistics.

Owns: `Outcome`. Does not know HTTP or percentiles. All moments are perf_counter seconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request.

    Attributes:
        begin: when it was due.
        sent: when it was sent; later than `begin` when the client was late.
        end: when the answer ended.
        moments: when each piece of the answer that carries tokens came.
        tokens: generated tokens, as the server counted them if it did, else pieces.
        prompt_tokens: of its prompt, as the server counted them; 0 if it did not say.
        cached_tokens: of these, taken from the server's prefix cache.
        left: the client hung up on purpose.
        error: its kind, None when all went well.
    """

    model: str
    begin: float
    sent: float
    end: float
    moments: Sequence[float] = ()
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    left: bool = False
    error: str | None = None

    @property
    def complete(self) -> bool:
        """The whole answer came: what latencies are taken of."""
        return self.error is None and not self.left

    @property
    def ttft(self) -> float:
        """Seconds from when it was due to its first token."""
        return self.moments[0] - self.begin

    @property
    def latency(self) -> float:
        """Seconds from when it was due to the end of the answer."""
        return self.end - self.begin

    @property
    def gaps(self) -> list[float]:
        """Seconds between two pieces."""
        return [b - a for a, b in pairwise(self.moments)]

    @property
    def token_seconds(self) -> float:
        """Mean seconds of a token behind the first (TPOT)."""
        return (self.moments[-1] - self.moments[0]) / max(self.tokens - 1, 1)
