"""Text that comes in pieces equals text that comes at once."""

from itertools import pairwise

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tsugiki.text.detokenizer import Detokenizer
from tsugiki.text.huggingface import HfTextSide

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def in_pieces(text: HfTextSide, ids: list[int], cuts: list[int]) -> list[str]:
    bounds = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    detokenizer = Detokenizer(text)
    pieces = [detokenizer.add(ids[a:b]) for a, b in pairwise(bounds)]
    return [*pieces, detokenizer.flush()]


@SETTINGS
@given(
    ids=st.lists(st.integers(0, 400), max_size=30), cuts=st.lists(st.integers(0, 30), max_size=30)
)
@example(ids=[0, 1, 0], cuts=[1, 2])
def test_any_ids_in_any_pieces_give_the_full_decode(
    either: HfTextSide, ids: list[int], cuts: list[int]
) -> None:
    assert "".join(in_pieces(either, ids, cuts)) == either.decode(ids)


@SETTINGS
@given(words=st.text(max_size=20))
@example(words="héllo 你好 🎉 wörld")
@example(words="👨‍👩‍👧‍👦 e\u0301")
@example(words=" two  spaces ")
def test_real_text_token_by_token_has_no_half_characters(either: HfTextSide, words: str) -> None:
    ids = either.encode(words, add_special_tokens=False)
    pieces = in_pieces(either, ids, list(range(len(ids))))
    assert "".join(pieces) == either.decode(ids)
    if REPLACEMENT not in either.decode(ids):
        assert not any(REPLACEMENT in piece for piece in pieces)


def test_runs_of_byte_tokens_are_certain_only_at_their_end(sentencepiece: HfTextSide) -> None:
    first, second, third = (
        sentencepiece.tokenizer.token_to_id(f"<0x{b:02X}>") for b in b"\xe2\x82\xac"
    )
    word = sentencepiece.encode("fox", add_special_tokens=False)
    detokenizer = Detokenizer(sentencepiece)
    assert [detokenizer.add([i]) for i in (first, second, third)] == ["", "", ""]
    assert detokenizer.add(word).startswith("€")


def test_the_window_stays_short(byte_level: HfTextSide) -> None:
    ids = byte_level.encode("A server keeps one base model in memory. " * 50)
    longest = 0
    detokenizer = Detokenizer(byte_level)
    for token_id in ids:
        detokenizer.add([token_id])
        longest = max(longest, len(detokenizer._window))
    assert longest <= 4
