"""With trusted keys configured nothing is served that none of them signed."""

import base64
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.variants.text_files import digest_of, open_registry, picture, place, put, upload
from tsugiki.errors import ConfigError, InvalidArtifact, InvalidRequest
from tsugiki.trusted_keys import TrustedKey
from tsugiki.variants.registry import Registry

KEYS = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 32) for name in "abx"}


def trusted(name: str) -> TrustedKey:
    return TrustedKey(name, base64.b64encode(KEYS[name].public_key().public_bytes_raw()).decode())


def sign(text: str, key: str = "a") -> str:
    return base64.b64encode(KEYS[key].sign(digest_of(text).encode())).decode()


def guarded(root: Path) -> Registry:
    return open_registry(root, trusted_keys=[trusted("a"), trusted("b")])


def test_the_signature_is_the_one_of_rfc_8032() -> None:
    """Section 7.1, test 2."""
    secret = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    key = Ed25519PrivateKey.from_private_bytes(secret)
    assert key.public_key().public_bytes_raw() == public
    assert key.sign(b"\x72").hex().startswith("92a009a9f0d4cab8720e820b5f642540")


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_signed_upload_is_served_and_says_who_signed_it(root: Path, key: str) -> None:
    registry = guarded(root)
    version, _ = registry.put("bank", upload(registry, "one"), signature=sign("one", key))
    assert version.signed_by == key
    assert guarded(root).resolve("bank") == version


@pytest.mark.parametrize(
    ("signature", "words"),
    [
        (None, "it has no signature"),
        (sign("one", "x"), "by none of them"),
        (sign("other"), "by none of them"),
    ],
    ids=["none", "a stranger's", "another file's"],
)
def test_an_upload_that_no_trusted_key_signed_is_refused(
    root: Path, signature: str | None, words: str
) -> None:
    registry = guarded(root)
    with pytest.raises(InvalidArtifact, match=words) as caught:
        registry.put("bank", upload(registry, "one"), signature=signature)
    assert digest_of("one") in str(caught.value), "the remedy: what is to be signed"
    assert registry.versions() == []


@pytest.mark.parametrize("signature", ["", "zzz", "ü", base64.b64encode(b"short").decode()])
def test_what_is_no_signature_is_refused(root: Path, signature: str) -> None:
    registry = open_registry(root)
    with pytest.raises(InvalidRequest, match="64 bytes"):
        registry.put("bank", upload(registry, "one"), signature=signature)
    assert registry.versions() == []


def test_a_restart_checks_signatures_again_and_a_signed_upload_mends_what_has_none(
    root: Path,
) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    registry.put("sales", upload(registry, "two"), signature=sign("two"))
    registry = guarded(root)
    assert registry.resolve("sales").signed_by == "a"
    with pytest.raises(InvalidArtifact, match="no signature"):
        registry.resolve("bank")
    again = registry.put("bank", upload(registry, "one"), signature=sign("one", "b"))
    assert again[1] is False
    assert guarded(root).resolve("bank").signed_by == "b"


def test_a_key_that_is_no_longer_trusted_takes_its_versions_out_of_service(root: Path) -> None:
    registry = guarded(root)
    registry.put("bank", upload(registry, "one"), signature=sign("one", "b"))
    registry = open_registry(root, trusted_keys=[trusted("a")])
    with pytest.raises(InvalidArtifact, match="by none of them"):
        registry.resolve("bank")
    assert open_registry(root).resolve("bank").signed_by is None, "without keys all are served"


def test_an_operators_file_is_signed_by_the_file_beside_it(root: Path) -> None:
    place(root, "bank", "one")
    registry = guarded(root)
    with pytest.raises(InvalidArtifact, match=r"NAME\.sig"):
        registry.resolve("bank")
    (root / "bank.sig").write_text(sign("one") + "\n")
    registry.rescan()
    (change,) = registry.rescan()
    assert (change.kind, change.error) == ("added", None)
    assert registry.resolve("bank").signed_by == "a"
    assert picture(guarded(root)) == picture(registry)
    registry.delete("bank")
    assert list(root.glob("bank*")) == []


@pytest.mark.parametrize("content", [b"", b"rubbish", bytes(range(256)) * 40])
def test_a_signature_file_that_is_none_fails_its_variant(root: Path, content: bytes) -> None:
    place(root, "bank", "one")
    (root / "bank.sig").write_bytes(content)
    with pytest.raises(InvalidArtifact, match="64 bytes"):
        guarded(root).resolve("bank")
    assert list((root / ".tsugiki").rglob("*.copy")) == []


@pytest.mark.parametrize("key", ["", "zzz", base64.b64encode(b"x" * 31).decode(), "ü" * 44])
def test_a_key_that_is_none_is_refused_with_the_command_that_prints_it(key: str) -> None:
    with pytest.raises(ConfigError, match=r"'ci'.*openssl pkey"):
        TrustedKey("ci", key)


def test_a_key_needs_an_id() -> None:
    with pytest.raises(ConfigError, match="id"):
        TrustedKey("", trusted("a").ed25519)
