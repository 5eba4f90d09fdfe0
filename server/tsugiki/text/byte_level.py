"""Tokens of byte-level BPE (GPT-2's, also Llama 3's, Qwen's and SmolLM's) as the bytes they mean.

Owns: the alphabet and `TokenBytes`. Does not know: UTF-8, text in pieces.
"""

import json

from tokenizers import Tokenizer


def _alphabet() -> dict[str, int]:
    """Character -> byte. Printable bytes stand for themselves, the others for characters from 256
    on, in order (Radford et al.: "Language models are unsupervised multitask learners", 2019; its
    published encoder)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + place): byte for place, byte in enumerate(others)
    }


_BYTE_OF = _alphabet()


class TokenBytes(dict[int, bytes]):
    """Token id -> its bytes; those of special tokens, and of ids without a token, are none.

    Where a tokenizer's only decoder is ByteLevel, its text of some ids is their bytes joined, read
    as UTF-8 with replacement characters. Entries are made when first looked up.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder().values()
        self._special = frozenset(token.content for token in added if token.special)

    def __missing__(self, token_id: int) -> bytes:
        token: str | None = self._tokenizer.id_to_token(token_id)
        if token is None or token in self._special:
            known = b""
        elif all(character in _BYTE_OF for character in token):
            known = bytes(_BYTE_OF[character] for character in token)
        else:  # an added token with a space in it, say
            known = token.encode()
        self[token_id] = known
        return known


def token_bytes(tokenizer: Tokenizer) -> TokenBytes | None:
    """The bytes of this tokenizer's tokens; None where its decoder looks at neighbours."""
    decoder = json.loads(tokenizer.to_str()).get("decoder") or {}
    kinds = [part["type"] for part in decoder.get("decoders", [decoder]) if part]
    return TokenBytes(tokenizer) if kinds == ["ByteLevel"] else None
