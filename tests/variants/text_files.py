"""A registry over text files: a verification that needs no tensors, for tests of the rest."""

import hashlib
from pathlib import Path

from tsugiki.codecs.base import Layout
from tsugiki.codecs.coverage import Coverage
from tsugiki.codecs.metadata import BaseRef, Header, Module
from tsugiki.errors import CorruptArtifact
from tsugiki.variants.registry import Registry
from tsugiki.variants.version import BaseIdentity, Version

IDENTITY = BaseIdentity("sha256:" + "0" * 64, Layout({}, {}, {}, "embed", (1, 1), True), 1)


def digest_of(text: str) -> str:
    """The digest that `verify_text` finds in a file of this text."""
    return "sha256:" + hashlib.sha256(f"good {text}".encode()).hexdigest()


def verify_text(path: Path) -> Header:
    """A file is fit when its content begins with "good "."""
    content = path.read_bytes()
    if not content.startswith(b"good "):
        raise CorruptArtifact(f"{path}: not good")
    return Header(
        codec="deltadq",
        role="delta",
        options={},
        base=BaseRef("tiny", "LlamaForCausalLM", IDENTITY.fingerprint),
        modules={"w": Module("deltadq", (8, 8), {})},
        text=None,
        probe=None,
        created_by="test",
        provenance={},
        report={},
        digest="sha256:" + hashlib.sha256(content).hexdigest(),
        file_bytes=len(content),
        header_bytes=8,
        padding=0,
        tensors=(),
        coverage=Coverage(1, 64, 1, 64, {"deltadq": 64}, {"other": 64}),
    )


def open_registry(root: Path, **seams: object) -> Registry:
    """What a restart of the server does."""
    return Registry(root, IDENTITY, **({"verify": verify_text} | seams))  # type: ignore[arg-type]


def upload(registry: Registry, text: str, *, good: bool = True) -> Path:
    """A finished upload that `put` can take."""
    path = registry.uploads() / f"upload-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    path.write_text(f"good {text}" if good else text)
    return path


def put(registry: Registry, name: str, text: str, activate: bool = True) -> Version:
    """Upload a text."""
    return registry.put(name, upload(registry, text), activate)[0]


def place(root: Path, name: str, text: str, *, good: bool = True) -> None:
    """What an operator does: write over a file of the directory, or make it."""
    (root / f"{name}.safetensors").write_text(f"good {text}" if good else text)


def picture(registry: Registry) -> list[tuple[str, str, bool, bool]]:
    """What a listing shows of every version."""
    return sorted((v.name, v.digest, v.active, v.error is None) for v in registry.versions())


def files_below(root: Path) -> set[str]:
    """Every file, by its path from `root`."""
    return {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
