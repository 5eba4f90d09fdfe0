"""The text side of a Hugging Face directory, and of the variants made from it.

Owns: reading tokenizer, chat template, EOS ids and generation defaults; what a variant's `text`
metadata changes about them. Does not know: requests, HTTP, the model.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from tsugiki.errors import InvalidArtifact, InvalidRequest, UnsupportedModel, UserError
from tsugiki.text.byte_level import TokenBytes, token_bytes

_SAMPLING: dict[
    str, tuple[float, float]
] = {  # generation defaults that are served, and their range
    "temperature": (0, 100),
    "top_p": (0, 1),
    "top_k": (-1, 2**31 - 1),
    "min_p": (0, 1),
    "repetition_penalty": (0.01, 100),
}
_RESERVED = {  # arguments of apply_chat_template that are not the template's variables
    *("conversation", "messages", "chat_template", "add_generation_prompt", "tokenize", "padding"),
    *("truncation", "max_length", "return_tensors", "return_dict", "tokenizer_kwargs"),
    *("return_assistant_tokens_mask", "continue_final_message", "sanitize_control_tokens"),
}


KEPT = 16  # tokenizers with added tokens that are remembered; one may take tens of megabytes

Added = tuple[tuple[int, str, bool], ...]  # id, content, special


class Extended(NamedTuple):
    """A tokenizer with added tokens, and what follows from it."""

    tokenizer: Tokenizer
    token_bytes: TokenBytes | None
    longest_token: int


@dataclass(frozen=True)
class HfTextSide:
    """Text rules through `tokenizers` (encode, decode) and transformers (chat templates).

    Threads: the fast tokenizer is only read after construction; truncation and padding, its only
    mutable settings, are switched off once and never touched again.
    """

    tokenizer: Tokenizer = field(repr=False)
    renderer: Any = field(
        repr=False
    )  # transformers' tokenizer: sandboxed templates, special tokens
    chat_template: str | None
    eos_token_ids: frozenset[int]
    vocab_size: int
    generation_defaults: Mapping[str, Any]
    byte_fallback_ids: frozenset[int] = field(repr=False)
    token_bytes: TokenBytes | None = field(repr=False)
    longest_token: int
    # Variants that add the same tokens share what this makes. The first of them is a file that is
    # being verified, on a worker thread: an event loop that asks later need not wait.
    _extend: Callable[[Added], Extended] = field(repr=False, compare=False)
    _anchor: tuple[int, ...]  # an ordinary token; what follows it is decoded as inside a text

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a plain prompt.

        Raises:
            InvalidRequest: lone surrogates, which JSON can write but UTF-8 cannot.
        """
        try:
            encoding = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        except (UnicodeError, TypeError) as error:
            raise InvalidRequest(
                "prompt: it holds half a surrogate pair (\\ud800 ... \\udfff), which is no text",
                param="prompt",
            ) from error
        return list(encoding.ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids; ids without a token decode to nothing."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def token(self, token_id: int) -> str:
        """The token's text as it stands inside a text, leading space included."""
        before = self.decode(self._anchor, skip_special_tokens=False)
        both = self.decode((*self._anchor, token_id), skip_special_tokens=False)
        return both[len(before) :]

    def chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, generation prompt added; `variables` go to the template.

        Raises:
            InvalidRequest: no chat template, or the template refuses the messages.
        """
        if self.chat_template is None:
            raise InvalidRequest(
                "this model has no chat template; use /v1/completions", param="messages"
            )
        if reserved := sorted(_RESERVED & variables.keys()):
            raise InvalidRequest(
                f"{reserved[0]!r} cannot be set from a request", param="chat_template_kwargs"
            )
        try:
            text = self.renderer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=self.chat_template,
                add_generation_prompt=True,
                tokenize=False,
                **variables,
            )
        except (jinja2.TemplateError, ValueError, TypeError, KeyError, ArithmeticError) as error:
            raise InvalidRequest(
                f"the chat template refuses these messages: {error}", param="messages"
            ) from error
        return self.encode(text, add_special_tokens=False)

    def for_variant(self, text: Mapping[str, Any] | None) -> "HfTextSide":
        """The base's rules with what a variant file's `text` metadata changes; null keeps.

        Args:
            text: chat_template, eos_token_ids, generation_defaults, added_tokens
                ([{id, content, special}]), vocab_size; each may be absent or null.

        Raises:
            InvalidArtifact: added tokens that do not land on their ids, defaults out of range.
        """
        stated = {name: value for name, value in (text or {}).items() if value is not None}
        side = self
        if stated.get("added_tokens"):
            tokens = (
                (t["id"], t["content"], bool(t.get("special"))) for t in stated["added_tokens"]
            )
            side = replace(side, **self._extend(tuple(sorted(tokens)))._asdict())
        return replace(
            side,
            chat_template=stated.get("chat_template", self.chat_template),
            eos_token_ids=frozenset(stated.get("eos_token_ids", self.eos_token_ids)),
            vocab_size=stated.get("vocab_size", self.vocab_size),
            generation_defaults=_sampling(
                stated.get("generation_defaults", self.generation_defaults), InvalidArtifact
            ),
        )


def load_text_side(base_dir: Path) -> HfTextSide:
    """The text side of a base directory; nothing is downloaded and no code of the model runs.

    Raises:
        UnsupportedModel: no usable tokenizer or config.json.
    """
    config = _read_json(base_dir / "config.json", required=True)
    generation = _read_json(base_dir / "generation_config.json", required=False)
    renderer = _load_renderer(base_dir)
    tokenizer: Tokenizer = renderer.backend_tokenizer
    tokenizer.no_truncation()
    tokenizer.no_padding()
    text_config = config.get("text_config", config)
    return HfTextSide(
        tokenizer=tokenizer,
        renderer=renderer,
        chat_template=_default_template(renderer.chat_template),
        eos_token_ids=_eos_token_ids(generation, text_config, config, renderer.eos_token_id),
        vocab_size=int(text_config.get("vocab_size", tokenizer.get_vocab_size())),
        generation_defaults=_sampling(generation, UnsupportedModel),
        byte_fallback_ids=_byte_fallback_ids(tokenizer),
        token_bytes=token_bytes(tokenizer),
        longest_token=_longest_token(tokenizer),
        _extend=lru_cache(KEPT)(partial(_extended, tokenizer)),
        _anchor=tuple(tokenizer.encode("a", add_special_tokens=False).ids[-1:]),
    )


def _load_renderer(base_dir: Path) -> Any:
    try:
        renderer = AutoTokenizer.from_pretrained(
            base_dir, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"{base_dir}: no usable tokenizer: {error}") from error
    if getattr(renderer, "backend_tokenizer", None) is None:
        raise UnsupportedModel(
            f"{base_dir}: {type(renderer).__name__} is not a fast tokenizer; provide tokenizer.json"
        )
    return renderer


def _read_json(path: Path, *, required: bool) -> dict[str, Any]:
    if not path.is_file() and not required:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UnsupportedModel(f"{path} must hold a JSON object")
    return content


def _default_template(template: str | dict[str, str] | None) -> str | None:
    """Old directories hold several named templates; "default" is the one for plain chat."""
    return template.get("default") if isinstance(template, dict) else template


def _eos_token_ids(*sources: Any) -> frozenset[int]:
    """The first configuration that states EOS ids, and the tokenizer's own (the last source)."""
    *configs, own = sources
    stated: int | list[int] = next(
        (config["eos_token_id"] for config in configs if config.get("eos_token_id") is not None), []
    )
    ids = {stated} if isinstance(stated, int) else set(stated)
    return frozenset(ids if own is None else ids | {own})


def _sampling(generation: Mapping[str, Any], refusal: type[UserError]) -> dict[str, Any]:
    stated = {name: generation[name] for name in _SAMPLING if generation.get(name) is not None}
    for name, value in stated.items():
        low, high = _SAMPLING[name]
        number = isinstance(value, int if name == "top_k" else int | float)
        if isinstance(value, bool) or not number or not low <= value <= high:
            raise refusal(
                f"generation default {name} is {value!r}; it must be a number of {low} to {high}"
            )
    return stated


def _byte_fallback_ids(tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of <0x00> ... <0xFF>, where the decoder joins runs of them into UTF-8."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = {part["type"] for part in decoder.get("decoders", [decoder]) if part}
    if "ByteFallback" not in kinds:
        return frozenset()
    ids = (tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256))
    return frozenset(token_id for token_id in ids if token_id is not None)


def _longest_token(tokenizer: Tokenizer) -> int:
    """Characters of the longest entry; byte-level entries are never shorter than their text."""
    return max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1)


def _extended(base: Tokenizer, added: Added) -> Extended:
    tokenizer = Tokenizer.from_str(base.to_str())
    for token_id, content, special in added:
        token = AddedToken(content, special=special, normalized=False)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([token])
        found = tokenizer.token_to_id(content)
        if found != token_id:
            raise InvalidArtifact(
                f"added token {content!r} has id {token_id} in the variant, but this "
                f"base's tokenizer gives it {found}; the variant was made on another tokenizer"
            )
    return Extended(tokenizer, token_bytes(tokenizer), _longest_token(tokenizer))
