"""Text that comes in pieces equals text that comes at once."""

from itertools import pairwise

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tsugiki.text.detokenizer import (
    ByteDetokenizer,
    Detokenizer,
    WindowDetokenizer,
    detokenizer,
)
from tsugiki.text.huggingface import HfTextSide

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SETTINGS = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def in_pieces(decoding: Detokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    bounds = sorted({0, len(ids), *(cut % (len(ids) + 1) for cut in cuts)})
    pieces = [decoding.add(ids[a:b]) for a, b in pairwise(bounds)]
    return [*pieces, decoding.flush()]


@SETTINGS
@given(
    ids=st.lists(st.integers(0, 400), max_size=30), cuts=st.lists(st.integers(0, 30), max_size=30)
)
@example(ids=[0, 1, 0], cuts=[1, 2])
def test_any_ids_in_any_pieces_give_the_full_decode(
    either: HfTextSide, ids: list[int], cuts: list[int]
) -> None:
    for decoding in (detokenizer(either), WindowDetokenizer(either)):
        assert "".join(in_pieces(decoding, ids, cuts)) == either.decode(ids)


@SETTINGS
@given(words=st.text(max_size=20))
@example(words="héllo 你好 🎉 wörld")
@example(words="👨‍👩‍👧‍👦 e\u0301")
@example(words=" two  spaces ")
def test_real_text_token_by_token_has_no_half_characters(either: HfTextSide, words: str) -> None:
    ids = either.encode(words, add_special_tokens=False)
    pieces = in_pieces(detokenizer(either), ids, list(range(len(ids))))
    assert "".join(pieces) == either.decode(ids)
    if REPLACEMENT not in either.decode(ids):
        assert not any(REPLACEMENT in piece for piece in pieces)


def test_runs_of_byte_tokens_are_certain_only_at_their_end(sentencepiece: HfTextSide) -> None:
    first, second, third = (
        sentencepiece.tokenizer.token_to_id(f"<0x{b:02X}>") for b in b"\xe2\x82\xac"
    )
    word = sentencepiece.encode("fox", add_special_tokens=False)
    decoding = detokenizer(sentencepiece)
    assert [decoding.add([i]) for i in (first, second, third)] == ["", "", ""]
    assert decoding.add(word).startswith("€")


def test_the_window_stays_short(byte_level: HfTextSide) -> None:
    ids = byte_level.encode("A server keeps one base model in memory. " * 50)
    longest = 0
    decoding = WindowDetokenizer(byte_level)
    for token_id in ids:
        decoding.add([token_id])
        longest = max(longest, len(decoding._window))
    assert longest <= 4


def test_byte_level_tokens_are_decoded_from_their_bytes_alone(
    byte_level: HfTextSide, sentencepiece: HfTextSide
) -> None:
    assert isinstance(detokenizer(byte_level), ByteDetokenizer)
    assert isinstance(detokenizer(sentencepiece), WindowDetokenizer)


def test_added_tokens_are_decoded_as_the_tokenizer_does(byte_level: HfTextSide) -> None:
    size = byte_level.tokenizer.get_vocab_size()
    added = [
        {"id": size, "content": "<tool call>", "special": False},
        {"id": size + 1, "content": "Ġ€", "special": False},
        {"id": size + 2, "content": "<|hidden|>", "special": True},
    ]
    side = byte_level.for_variant({"added_tokens": added, "vocab_size": size + 4})
    ids = [5, size, 6, size + 1, size + 2, size + 3, 7]
    assert "".join(in_pieces(detokenizer(side), ids, [1, 2, 3])) == side.decode(ids)
