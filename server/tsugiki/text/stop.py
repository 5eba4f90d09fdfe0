"""Stop strings in streamed text.

Owns: `StopMatcher`. Does not know: tokens, requests.
"""

from collections.abc import Sequence


class StopMatcher:
    """Finds the stop string that is completed first, however the text is cut into pieces.

    Text that may be the beginning of a stop string is held back until that is decided. Among stop
    strings completed by the same character the longest wins.
    """

    def __init__(self, stops: Sequence[str], include_stop: bool = False) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._include_stop = include_stop
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Take a piece of text; returns what may be shown, and the stop string once completed."""
        text = self._held + text
        ends = [
            (start + len(stop), start, stop)
            for stop in self._stops
            if (start := text.find(stop)) >= 0
        ]
        if ends:
            end, start, stop = min(ends)
            self._held = ""
            return text[: end if self._include_stop else start], stop
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], None

    def flush(self) -> str:
        """What was held back, at the end of a request."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
