"""The text side of a base or a variant: what a fine-tune may change about text.

Owns: `TextSide` (tokenizer with added tokens, chat template, EOS ids, generation defaults).
Does not know: requests, HTTP, the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class TextSide(Protocol):
    """Text rules of one version; immutable and safe to use from several threads."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """temperature, top_p, ... of the fine-tune."""

    @property
    def byte_fallback_ids(self) -> frozenset[int]:
        """Tokens <0x00> ... <0xFF> of a SentencePiece vocabulary."""

    @property
    def token_bytes(self) -> Mapping[int, bytes] | None:
        """Bytes of each token where `decode` is these joined, read as UTF-8 with replacement
        characters (byte-level BPE). None: what a token means depends on its neighbours."""

    @property
    def longest_token(self) -> int:
        """Characters; bounds how few tokens a long text can have."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a plain prompt."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids."""

    def token(self, token_id: int) -> str:
        """How one token is shown in logprobs (U+FFFD for half a UTF-8 sequence)."""

    def chat(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> list[int]:
        """Token ids of a conversation, generation prompt added.

        Raises:
            InvalidRequest: no chat template, or the template refuses the messages.
        """
