"""Signatures of variants: ed25519 (RFC 8032) over the ASCII bytes of the digest.

Owns: what a signature looks like and whether a trusted key made it. With `cryptography` its only
user. Does not know where signatures are kept (alias.py).

    printf %s sha256:<64 hex> > digest
    openssl pkeyutl -sign -rawin -inkey KEY.pem -in digest | base64 -w0
"""

import base64
import binascii
from collections.abc import Iterable

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tsugiki.errors import InvalidRequest
from tsugiki.trusted_keys import TrustedKey

SIGNATURE_BYTES = 64


def check_form(signature: str) -> str:
    """The signature without surrounding white space.

    Raises:
        InvalidRequest: not base64 of 64 bytes.
    """
    try:
        length = len(base64.b64decode(signature.strip(), validate=True))
    except (binascii.Error, ValueError):
        length = 0
    if length != SIGNATURE_BYTES:
        raise InvalidRequest(
            f"the signature is not base64 of the {SIGNATURE_BYTES} bytes of an ed25519 signature; "
            "sign the digest string itself",
            param="signature",
        )
    return signature.strip()


class Signers:
    """The trusted keys. Without any, every version is accepted and none is signed by anybody."""

    def __init__(self, keys: Iterable[TrustedKey] = ()) -> None:
        self._keys = {key.id: Ed25519PublicKey.from_public_bytes(key.raw) for key in keys}
        self._known: dict[tuple[str, str], str | None] = {}  # 0.1 ms each, asked at every change

    def signer(self, digest: str, signature: str | None) -> str | None:
        """The id of the trusted key that signed this digest; None when there is none."""
        if signature is None:
            return None
        if (digest, signature) not in self._known:
            raw = base64.b64decode(signature)
            self._known[digest, signature] = next(
                (name for name, key in self._keys.items() if _verifies(key, raw, digest)), None
            )
        return self._known[digest, signature]

    def refusal(self, digest: str, signature: str | None) -> str | None:
        """Why a version may not be served, when trusted keys are configured and none signed it."""
        if not self._keys or self.signer(digest, signature):
            return None
        found = "it has no signature" if signature is None else "its signature is by none of them"
        return (
            f"this server serves what is signed by {', '.join(self._keys)}, and {found}; sign the "
            f"text {digest} with ed25519 and give the base64 with the upload, or as NAME.sig "
            "beside NAME.safetensors"
        )


def _verifies(key: Ed25519PublicKey, raw: bytes, digest: str) -> bool:
    try:
        key.verify(raw, digest.encode())
    except InvalidSignature:
        return False
    return True
