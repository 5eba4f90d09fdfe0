"""Stop strings are found the same however the text is cut."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from tsugiki.text.stop import StopMatcher

LETTERS = st.text(alphabet="ab\n", max_size=24)
STOPS = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=4)


def expected(text: str, stops: list[str], include: bool) -> tuple[str, str | None]:
    """Letter by letter: the first letter that completes a stop ends it; the longest wins."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            stop = max(done, key=len)
            return (text[:end] if include else text[: end - len(stop)]), stop
    return text, None


def run(pieces: list[str], stops: list[str], include: bool) -> tuple[str, str | None]:
    matcher = StopMatcher(stops, include_stop=include)
    shown = ""
    for piece in pieces:
        emitted, matched = matcher.feed(piece)
        shown += emitted
        if matched is not None:
            return shown, matched
    return shown + matcher.flush(), None


@given(text=LETTERS, stops=STOPS, cuts=st.lists(st.integers(0, 24)), include=st.booleans())
@example(text="aab", stops=["aab", "ab", "b"], cuts=[1, 2], include=False)
@example(text="aaab", stops=["aab"], cuts=[1, 2, 3], include=False)
@example(text="abba", stops=["bba", "bb"], cuts=[], include=True)
def test_any_cut_gives_the_same_answer(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    bounds = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    pieces = [text[a:b] for a, b in pairwise(bounds)]
    assert run(pieces, stops, include) == expected(text, stops, include)


@given(text=LETTERS, stops=STOPS)
def test_nothing_is_held_back_that_cannot_begin_a_stop(text: str, stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    shown, matched = matcher.feed(text)
    if matched is None:
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


def test_without_stops_everything_passes() -> None:
    assert StopMatcher([]).feed("text") == ("text", None)
