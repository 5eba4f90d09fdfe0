"""The text side of a directory, and what a variant changes about it."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tsugiki.errors import InvalidArtifact, InvalidRequest, UnsupportedModel
from tsugiki.text.huggingface import HfTextSide, load_text_side

TEXT = "What is the capital of France? héllo 🎉"
MESSAGES = [{"role": "user", "content": "Hello"}]


def test_prompts_and_chats_equal_those_of_transformers(
    byte_level: HfTextSide, byte_level_dir: Path
) -> None:
    theirs = AutoTokenizer.from_pretrained(byte_level_dir)
    chat = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert byte_level.encode(TEXT) == theirs(TEXT).input_ids
    assert byte_level.chat(MESSAGES) == chat
    assert byte_level.decode(byte_level.encode(TEXT)) == TEXT


def test_tokens_joined_are_the_text(either: HfTextSide) -> None:
    ids = either.encode("the quick brown fox", add_special_tokens=False)
    assert "".join(map(either.token, ids)).strip() == "the quick brown fox"
    assert either.token(ids[-1]) == either.decode(ids)[-len(either.token(ids[-1])) :]


def test_half_a_character_is_shown_as_replacement(byte_level: HfTextSide) -> None:
    ids = byte_level.encode("🎉", add_special_tokens=False)
    assert byte_level.token(ids[0]) == "\N{REPLACEMENT CHARACTER}"


def write(directory: Path, name: str, content: Any) -> None:
    (directory / name).write_text(json.dumps(content))


@pytest.fixture
def copy(byte_level_dir: Path, tmp_path: Path) -> Path:
    """A directory to change."""
    return Path(shutil.copytree(byte_level_dir, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, {1}),
        ({"eos_token_id": 7}, {1, 7}),
        ({"eos_token_id": [5, 6]}, {1, 5, 6}),
        ({"eos_token_id": None}, {1}),
    ],
)
def test_eos_ids_come_from_generation_config_else_config_and_the_tokenizer(
    copy: Path, generation: dict[str, Any] | None, expected: set[int]
) -> None:
    if generation is not None:
        write(copy, "generation_config.json", generation)
    assert load_text_side(copy).eos_token_ids == expected


def test_generation_defaults_are_the_sampling_fields_only(copy: Path) -> None:
    write(copy, "generation_config.json", {"temperature": 0.6, "top_k": None, "pad_token_id": 3})
    assert load_text_side(copy).generation_defaults == {"temperature": 0.6}


def test_null_keeps_the_base(byte_level: HfTextSide) -> None:
    nulls = dict.fromkeys(["chat_template", "eos_token_ids", "generation_defaults", "added_tokens"])
    assert byte_level.for_variant(None) == byte_level
    assert byte_level.for_variant(nulls) == byte_level


def test_a_variant_brings_its_template_eos_and_defaults(byte_level: HfTextSide) -> None:
    side = byte_level.for_variant(
        {
            "chat_template": "{{ messages[0].content }}!",
            "eos_token_ids": [9],
            "generation_defaults": {"temperature": 0.1},
            "vocab_size": 500,
        }
    )
    assert side.decode(side.chat(MESSAGES)) == "Hello!"
    assert (side.eos_token_ids, side.vocab_size) == ({9}, 500)
    assert side.generation_defaults == {"temperature": 0.1}
    assert byte_level.eos_token_ids == {1}


def test_added_tokens_exist_for_their_variant_only(byte_level: HfTextSide) -> None:
    size = byte_level.tokenizer.get_vocab_size()
    added = [
        {"id": size + 1, "content": "<b>", "special": False},
        {"id": size, "content": "<a>", "special": True},
    ]
    side = byte_level.for_variant({"added_tokens": added})
    ids = side.encode("x<a>y<b>")
    assert {size, size + 1} <= set(ids)
    assert side.decode(ids) == "xy<b>"
    assert side.decode(ids, skip_special_tokens=False) == "x<a>y<b>"
    assert not {size, size + 1} & set(byte_level.encode("x<a>y<b>"))


def test_variants_that_add_the_same_tokens_share_a_tokenizer(byte_level: HfTextSide) -> None:
    size = byte_level.tokenizer.get_vocab_size()
    added = [{"id": size, "content": "<a>", "special": True}]
    first, second = (byte_level.for_variant({"added_tokens": added}) for _ in range(2))
    assert first.tokenizer is second.tokenizer
    plain = [{"id": size, "content": "<a>", "special": False}]
    assert byte_level.for_variant({"added_tokens": plain}).tokenizer is not first.tokenizer


def test_added_tokens_of_another_tokenizer_are_refused(byte_level: HfTextSide) -> None:
    with pytest.raises(InvalidArtifact, match="another tokenizer"):
        byte_level.for_variant({"added_tokens": [{"id": 9999, "content": "<a>", "special": True}]})


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0].missing.deeper }}",
        "{% for %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_that_fails_is_the_requests_error(byte_level: HfTextSide, template: str) -> None:
    side = byte_level.for_variant({"chat_template": template})
    with pytest.raises(InvalidRequest, match="chat template"):
        side.chat(MESSAGES)


def test_template_variables_pass_but_arguments_of_the_renderer_do_not(
    byte_level: HfTextSide,
) -> None:
    side = byte_level.for_variant({"chat_template": "{{ mood }}"})
    assert side.decode(side.chat(MESSAGES, mood="glad")) == "glad"
    with pytest.raises(InvalidRequest, match="chat_template"):
        side.chat(MESSAGES, chat_template="x")


def test_no_template_is_a_clear_refusal(sentencepiece: HfTextSide) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        sentencepiece.chat(MESSAGES)


def test_half_a_surrogate_pair_is_refused(byte_level: HfTextSide) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        byte_level.encode("\ud800")


@pytest.mark.parametrize(
    "defaults",
    [{"temperature": "hot"}, {"temperature": -1}, {"top_p": float("nan")}, {"top_k": 1.5}],
)
def test_generation_defaults_out_of_range_are_refused(
    byte_level: HfTextSide, defaults: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArtifact, match=next(iter(defaults))):
        byte_level.for_variant({"generation_defaults": defaults})


def test_a_directory_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json"):
        load_text_side(tmp_path)
    write(tmp_path, "config.json", {"model_type": "llama", "vocab_size": 10})
    with pytest.raises(UnsupportedModel, match="tokenizer"):
        load_text_side(tmp_path)


def test_many_threads_tokenise_at_once(byte_level: HfTextSide) -> None:
    alone = byte_level.encode(TEXT * 20), byte_level.chat(MESSAGES)
    with ThreadPoolExecutor(4) as pool:
        together = list(
            pool.map(lambda _: (byte_level.encode(TEXT * 20), byte_level.chat(MESSAGES)), range(40))
        )
    assert all(result == alone for result in together)
