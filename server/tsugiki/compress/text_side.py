"""What a fine-tune changes about text: template, end tokens, generation defaults, added tokens.

Owns: collecting it from two model directories into the `text` entry of a variant file.
Does not know: weights, codecs, how a server applies it (text/).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsugiki.compress.tokenizer_check import (
    AddedToken,
    added_tokens,
    has_tokenizer,
    load_tokenizer,
)
from tsugiki.errors import CompressionRefused

GENERATION_FILE = "generation_config.json"
# What a server applies to a request that leaves the field out.
GENERATION_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")

Config = Mapping[str, Any]


def collect_text_side(
    base: Path, tuned: Path, base_config: Config, tuned_config: Config
) -> dict[str, Any] | None:
    """The `text` entry of the file: all of the fine-tune's text rules, or None when they are the
    base's. `chat_template` alone may be None within it: then the base's stands.

    Raises:
        CompressionRefused: the tokenizers differ by more than added tokens; an added token has no
            row in the embedding.
    """
    own = load_tokenizer(base) if has_tokenizer(base) else None
    other = load_tokenizer(tuned) if has_tokenizer(tuned) else own
    tokens = added_tokens(own, other) if own is not None and other is not own else []
    _check_rows(tokens, _vocab_size(tuned_config))
    ours = _rules(base, base_config, own)
    theirs = _rules(tuned, tuned_config, other)
    if not theirs["eos_token_ids"]:
        theirs["eos_token_ids"] = ours["eos_token_ids"]
    if not (tuned / GENERATION_FILE).is_file():
        theirs["generation_defaults"] = ours["generation_defaults"]
    if theirs["chat_template"] in (None, ours["chat_template"]):
        theirs["chat_template"] = ours["chat_template"] = None
    theirs["added_tokens"] = [asdict(token) for token in tokens]
    return None if theirs == {**ours, "added_tokens": []} else theirs


def _rules(directory: Path, config: Config, tokenizer: Any | None) -> dict[str, Any]:
    generation = _read_optional(directory / GENERATION_FILE)
    return {
        "chat_template": _template(tokenizer),
        "eos_token_ids": eos_token_ids(generation, config, tokenizer),
        "generation_defaults": {
            key: generation[key] for key in GENERATION_KEYS if generation.get(key) is not None
        },
        "vocab_size": _vocab_size(config),
    }


def _check_rows(tokens: list[AddedToken], vocab_size: int) -> None:
    for token in tokens:
        if token.id >= vocab_size:
            raise CompressionRefused(
                f"added token {token.content!r} has id {token.id}, but the embedding has "
                f"{vocab_size} rows; call resize_token_embeddings(len(tokenizer)) before training"
            )


def eos_token_ids(generation: Config, config: Config, tokenizer: Any | None) -> list[int]:
    """The ids that end an answer: generation_config.json's, or else config.json's, and always the
    tokenizer's own (many fine-tunes set only that one)."""
    declared = generation.get("eos_token_id", config.get("eos_token_id"))
    ids = set(declared if isinstance(declared, list) else [declared])
    if tokenizer is not None:
        ids.add(tokenizer.eos_token_id)
    return sorted(i for i in ids if i is not None)


def _template(tokenizer: Any | None) -> str | None:
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):  # several named ones
        template = template.get("default")
    return template if isinstance(template, str) else None


def _vocab_size(config: Config) -> int:
    text = config.get("text_config")
    return int((text if isinstance(text, Mapping) else config)["vocab_size"])


def _read_optional(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CompressionRefused(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise CompressionRefused(f"{path} is not a JSON object")
    return content
