"""How many prompt tokens a step may take, so that those who read along do not wait long.

Owns: what a prompt token costs, measured. Does not know requests or clocks: it is told what each
step held and how long it took.
"""

NEWCOMER_TOKENS = 64
# What is measured trembles, and a step of another size is another recording (model/recorded.py):
# milliseconds of Python. So prompts are cut in pieces of few sizes.
_STRIDE = 8
_KEEP = 0.8  # of what is known, at each new measurement


class StepBudget:
    """A limit of tokens, and of time while anybody decodes. With nobody decoding, no one's next
    token is late, and the limit is that of tokens alone."""

    def __init__(self, max_tokens: int, target_seconds: float | None, least: int = 16) -> None:
        """
        Args:
            max_tokens: of one step, decode rows included.
            target_seconds: how long a step that decodes should take; None: as long as it takes.
                Prompts get half as much time as the decodes in any case.
            least: prompt tokens that a step takes however long they take.
        """
        self._max_tokens = max_tokens
        self._target = target_seconds
        self._least = least
        self._decode_seconds = 0.0  # of the last steps without prompt tokens
        self._prompt_seconds = 0.0  # of the last steps with some, beyond that; decaying sums
        self._prompt_tokens = 0.0

    def prompt_tokens(self, decode_rows: int) -> int:
        """The most prompt tokens that this step may take beside so many decode rows."""
        room = self._max_tokens - decode_rows
        if self._target is None or not decode_rows or not self._prompt_seconds:
            return room
        seconds = max(self._target - self._decode_seconds, self._decode_seconds / 2)
        fitting = seconds * self._prompt_tokens / self._prompt_seconds
        return min(room, max(self._least, _STRIDE * round(fitting / _STRIDE)))

    def newcomer_tokens(self, decode_rows: int) -> int:
        """The same for the one prompt of a tenant that has nothing else running: when it is short,
        its first token comes with the step."""
        return min(self._max_tokens - decode_rows, NEWCOMER_TOKENS)

    def record(self, decode_rows: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a step that was computed."""
        if not prompt_tokens:
            before = self._decode_seconds or seconds
            self._decode_seconds = _KEEP * before + (1 - _KEEP) * seconds
        elif prompt_tokens >= self._least:  # fewer say little about what one costs
            beside = self._decode_seconds if decode_rows else 0.0
            self._prompt_seconds = _KEEP * self._prompt_seconds + max(0.0, seconds - beside)
            self._prompt_tokens = _KEEP * self._prompt_tokens + prompt_tokens
