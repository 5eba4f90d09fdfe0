"""What a fine-tune's tokenizer adds to its base's, and the refusal of everything else.

Owns: the comparison of two tokenizers. Does not know: weights, chat templates, the variant file.

Both tokenizers are loaded and written out again by the same library, so that old and new spellings
of tokenizer.json compare equal. A served variant can only append tokens: `tokenizers` gives new
tokens the next free ids, in order.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.errors import CompressionRefused

FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
PLACING = ("single_word", "lstrip", "rstrip")  # flags that the variant file does not carry


@dataclass(frozen=True, slots=True)
class AddedToken:
    """One token that the fine-tune has and its base has not."""

    id: int
    content: str
    special: bool


def has_tokenizer(directory: Path) -> bool:
    """Whether a model directory brings its own tokenizer (PEFT and bare checkpoints do not)."""
    return any((directory / name).is_file() for name in FILES)


def load_tokenizer(directory: Path) -> Any:
    """The directory's fast tokenizer, through transformers.

    Raises:
        CompressionRefused: it cannot be loaded, or has no fast form to compare.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise CompressionRefused(f"{directory}: its tokenizer cannot be loaded ({error})") from None
    if not tokenizer.is_fast:
        raise CompressionRefused(f"{directory}: no tokenizer.json; save a fast tokenizer into it")
    return tokenizer


def added_tokens(base: Any, tuned: Any) -> list[AddedToken]:
    """The fine-tune's additional tokens, by ascending id. Takes two fast tokenizers.

    Raises:
        CompressionRefused: the tokenizers differ in anything else; names the first difference.
    """
    first, second = _described(base), _described(tuned)
    difference = _first_difference(first, second)
    if difference:
        raise CompressionRefused(
            f"the fine-tune's tokenizer differs from its base's by more than added tokens: "
            f"{difference}. A variant can only add tokens at the end"
        )
    fresh = [second.tokens[i] for i in sorted(set(second.tokens) - set(first.tokens))]
    _check_appended(fresh, first.next_id)
    return [AddedToken(t["id"], t["content"], bool(t["special"])) for t in fresh]


def first_difference(one: Any, other: Any) -> str | None:
    """What tells two fast tokenizers apart ("base" is the first of them); None: nothing does."""
    first, second = _described(one), _described(other)
    fresh = sorted(set(second.tokens) - set(first.tokens))
    added = f"it adds token {second.tokens[fresh[0]]['content']!r}" if fresh else None
    return _first_difference(first, second) or added


@dataclass(frozen=True, slots=True)
class _Description:
    """A tokenizer, written out."""

    model: Mapping[str, Any]
    stages: Mapping[str, Any]
    tokens: Mapping[int, Mapping[str, Any]]  # added tokens by id

    @property
    def next_id(self) -> int:
        """The id that the library gives to the next added token."""
        vocabulary = self.model.get("vocab", {})
        ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
        return int(max([-1, *ids, *self.tokens])) + 1


def _described(tokenizer: Any) -> _Description:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    return _Description(
        model=content["model"],
        stages={name: content.get(name) for name in STAGES},
        tokens={token["id"]: token for token in content.get("added_tokens", [])},
    )


def _first_difference(base: _Description, tuned: _Description) -> str | None:
    return (
        _model_difference(base.model, tuned.model)
        or _token_difference(base, tuned)
        or next(
            (
                f"{name}: base {_short(base.stages[name])}, fine-tune {_short(tuned.stages[name])}"
                for name in STAGES
                if base.stages[name] != tuned.stages[name]
            ),
            None,
        )
    )


def _model_difference(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> str | None:
    for key in sorted(set(base) | set(tuned)):
        first, second = base.get(key), tuned.get(key)
        if first == second:
            continue
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            return _vocabulary_difference(first, second)
        if isinstance(first, list) and isinstance(second, list):
            return _list_difference(key, first, second)
        return f"{key}: base {_short(first)}, fine-tune {_short(second)}"
    return None


def _vocabulary_difference(base: Mapping[str, Any], tuned: Mapping[str, Any]) -> str:
    differing = [token for token in {**base, **tuned} if base.get(token) != tuned.get(token)]
    token = min(differing, key=lambda t: (min(base.get(t, 1 << 62), tuned.get(t, 1 << 62)), t))
    return f"token {token!r} has id {base.get(token)} in the base and {tuned.get(token)} in it"


def _list_difference(key: str, base: list[Any], tuned: list[Any]) -> str:
    if len(base) != len(tuned):
        return f"{len(base)} {key} in the base, {len(tuned)} in it"
    at = next(i for i, (a, b) in enumerate(zip(base, tuned, strict=True)) if a != b)
    return f"{key} {at}: base {_short(base[at])}, fine-tune {_short(tuned[at])}"


def _token_difference(base: _Description, tuned: _Description) -> str | None:
    for i in sorted(base.tokens):
        first, second = base.tokens[i], tuned.tokens.get(i)
        if second is None:
            return f"added token {first['content']!r} (id {i}) is missing from it"
        for key in sorted(first):
            if first[key] != second.get(key):
                found = second.get(key)
                return f"added token {i}: {key} is {first[key]!r} in the base, {found!r} in it"
    return None


def _check_appended(fresh: list[Mapping[str, Any]], next_id: int) -> None:
    for expected, token in enumerate(fresh, start=next_id):
        if token["id"] != expected:
            raise CompressionRefused(
                f"added token {token['content']!r} has id {token['id']}, but the next free id of "
                f"the base's tokenizer is {expected}: a variant can only add tokens at the end"
            )
        odd = [flag for flag in PLACING if token.get(flag)]
        if odd:
            raise CompressionRefused(
                f"added token {token['content']!r} sets {', '.join(odd)}, which a variant does not "
                "carry; add it without"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
