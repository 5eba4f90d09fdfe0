"""Every file that must not be served, on both ways in: each has its error and changes nothing."""

import pickle
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.variants.tiny_variant import (
    IDENTITY,
    NORM,
    K,
    Q,
    base_vector,
    forge,
    packed_modules,
    write_variant,
)
from tsugiki.codecs.artifact import Artifact
from tsugiki.codecs.base import ResidentVariant
from tsugiki.codecs.container import Blob
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.errors import CorruptArtifact, InvalidArtifact, ModelNotFound, WrongBase
from tsugiki.variants.loader import BackgroundLoader, load_files
from tsugiki.variants.registry import Registry
from tsugiki.variants.residency import Residency
from tsugiki.variants.verification import verify_against
from tsugiki.variants.version import BaseIdentity
from tsugiki_kernels.reference import ReferenceBackend

Spoil = Callable[[Path], object]


def keep(count: int) -> Spoil:
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def flip(place: int) -> Spoil:
    def spoil(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[place] ^= 0x10
        path.write_bytes(content)

    return spoil


def put_nan(blob: str) -> Spoil:
    def spoil(content: bytearray, blobs: dict[str, Blob]) -> None:
        place = blobs[blob]
        nan = {"F16": b"\x00\x7e", "F32": struct.pack("<f", float("nan"))}[place.dtype]
        content[place.begin : place.begin + len(nan)] = nan

    return lambda path: forge(path, data=spoil)


def float_blobs() -> list[str]:
    return ["deltadq.step.f16", "dense.values.f32"]


def rename_module(old: str, new: str) -> Spoil:
    def spoil(fields: dict) -> None:  # type: ignore[type-arg]
        modules = {new if name == old else name: m for name, m in fields["modules"].items()}
        fields["modules"] = modules

    return lambda path: forge(path, metadata=spoil)


def text_side(**fields: object) -> Spoil:
    text = {
        "chat_template": None,
        "eos_token_ids": [1],
        "generation_defaults": {},
        "added_tokens": [],
        "vocab_size": 64,
    }
    return lambda path: forge(path, metadata=lambda meta: meta.update(text={**text, **fields}))


def put_zeros(path: Path) -> None:
    """Every step and every value zero: all modules are there, and none of them does anything."""

    def spoil(content: bytearray, blobs: dict[str, Blob]) -> None:
        for name in ("deltadq.step.f16", "dense.values.f32"):
            place = blobs[name]
            content[place.begin : place.begin + place.nbytes] = bytes(place.nbytes)

    delta = {"codec": "dense", "options": {"dtype": "float32", "mode": "delta"}}
    forge(path, metadata=lambda fields: fields["modules"][NORM].update(delta), data=spoil)


def declare(modules: int, parameters: int) -> Spoil:
    report = {"coverage": {"modules": modules, "parameters": parameters}}
    return lambda path: forge(path, metadata=lambda fields: fields.update(report=report))


def probe(prompt: list[int], greedy: list[int]) -> Spoil:
    value = {"prompt_ids": prompt, "greedy_ids": greedy}
    return lambda path: forge(path, metadata=lambda fields: fields.update(probe=value))


def stock_file(path: Path) -> None:
    safetensors.torch.save_file({"weight": torch.ones(4)}, path)


BAD: dict[str, tuple[Spoil, type[InvalidArtifact], str]] = {
    "empty": (keep(0), CorruptArtifact, "too short"),
    "7 bytes": (keep(7), CorruptArtifact, "too short"),
    "half a header": (keep(100), CorruptArtifact, "truncated"),
    "one byte short": (keep(-1), CorruptArtifact, "truncated"),
    "one byte more": (
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        CorruptArtifact,
        "bytes appended",
    ),
    "flipped byte of the length": (flip(0), CorruptArtifact, "header"),
    "flipped byte of the header": (flip(200), InvalidArtifact, "codec|header"),
    "flipped byte of the tensors": (flip(-3), CorruptArtifact, "digest"),
    "a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"weight": [1.0] * 100})),
        CorruptArtifact,
        "not a safetensors file",
    ),
    "a torch.save archive": (
        lambda path: torch.save({"weight": torch.ones(4)}, path),
        CorruptArtifact,
        "not a safetensors file",
    ),
    "text": (
        lambda path: path.write_text("<html>404 not found</html>"),
        CorruptArtifact,
        "not a safetensors file",
    ),
    "safetensors without our metadata": (stock_file, CorruptArtifact, "not a variant"),
    "a huge header length": (
        lambda path: path.write_bytes(struct.pack("<Q", 2**60) + b"{}"),
        CorruptArtifact,
        "header length",
    ),
    "a deeply nested header": (
        lambda path: path.write_bytes(struct.pack("<Q", 200_000) + b"[" * 200_000),
        CorruptArtifact,
        "JSON",
    ),
    "another base": (
        lambda path: write_variant(path, fingerprint="sha256:" + "cd" * 32),
        WrongBase,
        "cdcdcd",
    ),
    "another format version": (
        lambda path: forge(path, lambda fields: fields.update(format="tsugiki.variant/2")),
        InvalidArtifact,
        "tsugiki.variant/2",
    ),
    "an unknown codec": (
        lambda path: forge(path, lambda fields: fields.update(codec="zip")),
        InvalidArtifact,
        "'zip'",
    ),
    "an unknown codec of one module": (
        lambda path: forge(path, lambda fields: fields["modules"][Q].update(codec="zip")),
        InvalidArtifact,
        "'zip'",
    ),
    "an unknown role": (
        lambda path: forge(path, lambda fields: fields.update(role="boss")),
        InvalidArtifact,
        "'boss'",
    ),
    "a missing field": (
        lambda path: forge(path, lambda fields: fields.pop("created_by")),
        InvalidArtifact,
        "created_by",
    ),
    "an unknown option": (
        lambda path: forge(path, lambda fields: fields["options"].update(surprise=1)),
        InvalidArtifact,
        "surprise",
    ),
    "a missing module's tensors": (
        lambda path: forge(path, lambda fields: fields["modules"].pop(K)),
        InvalidArtifact,
        "the modules need",
    ),
    "another shape": (
        lambda path: write_variant(path, modules=packed_modules(shape=(24, 32))),
        InvalidArtifact,
        r"\[24, 32\]; this base has \[16, 32\]",
    ),
    "a parameter the base has not": (
        rename_module(Q, "layers.9.q_proj.weight"),
        InvalidArtifact,
        "layers.9.q_proj.weight",
    ),
    "a path for a name": (
        rename_module(Q, "../../etc/passwd"),
        InvalidArtifact,
        "no such parameter",
    ),
    "no modules": (
        lambda path: write_variant(path, modules={}),
        InvalidArtifact,
        "changes no parameter",
    ),
    "only zeros": (put_zeros, InvalidArtifact, "changes no parameter of the base: 3 modules"),
    "fewer modules than declared": (declare(4, 1056), InvalidArtifact, "declares 4 .* changes 3"),
    "fewer parameters than declared": (declare(3, 1057), InvalidArtifact, "1057 .* with 1056"),
    "a count that is none": (declare(3, None), InvalidArtifact, "report.coverage"),  # type: ignore[arg-type]
    "a probe of nothing": (probe([1], []), InvalidArtifact, "probe.greedy_ids holds 0 ids"),
    "a probe beyond the vocabulary": (probe([1, 64], [2]), InvalidArtifact, "token id 64"),
    "an endless probe": (probe([1] * 513, [2]), InvalidArtifact, "513 ids; expected 1..512"),
    "two codecs in one fused linear": (
        lambda path: write_variant(
            path,
            modules={Q: packed_modules()[Q], K: packed_modules(codec="bitdelta")[K]},
        ),
        InvalidArtifact,
        "the same codec",
    ),
    "a vocabulary without rows": (text_side(vocab_size=65), InvalidArtifact, "rows"),
    "no end-of-sequence ids": (text_side(eos_token_ids="1"), InvalidArtifact, "eos_token_ids"),
    **{f"NaN in {blob}": (put_nan(blob), InvalidArtifact, "nan|NaN") for blob in float_blobs()},
}


@pytest.fixture(params=BAD)
def bad(request: pytest.FixtureRequest) -> tuple[Spoil, type[InvalidArtifact], str]:
    """Every way to spoil a valid file, with the error it must have."""
    return BAD[request.param]


def test_a_bad_upload_has_its_error_and_changes_nothing(
    root: Path, bad: tuple[Spoil, type[InvalidArtifact], str]
) -> None:
    spoil, error, words = bad
    registry = Registry(root, IDENTITY)
    write_variant(registry.uploads() / "good", seed=7)
    good, _ = registry.put("bank", registry.uploads() / "good")
    path = registry.uploads() / "bad"
    write_variant(path)
    spoil(path)
    with pytest.raises(error, match=words) as caught:
        registry.put("bank", path)
    assert str(root) not in str(caught.value)
    assert registry.versions() == [good]
    assert registry.resolve("bank") == good
    assert not path.exists()
    assert [v.digest for v in Registry(root, IDENTITY).versions()] == [good.digest]


def test_a_bad_file_in_the_directory_is_failed_and_its_neighbours_are_served(
    root: Path, bad: tuple[Spoil, type[InvalidArtifact], str]
) -> None:
    spoil, _, words = bad
    write_variant(root / "good.safetensors", seed=7)
    path = root / "bad.safetensors"
    write_variant(path)
    spoil(path)
    registry = Registry(root, IDENTITY)
    (failed,) = [v for v in registry.versions() if v.error is not None]
    assert failed.name == "bad"
    with pytest.raises(InvalidArtifact, match=words):
        registry.resolve("bad")
    if failed.digest:
        with pytest.raises(ModelNotFound):
            registry.path(failed.digest)
    assert registry.resolve("good").error is None
    assert path.exists(), "the operator's files are never removed by a scan"


def test_every_flipped_byte_is_refused(root: Path) -> None:
    path = root / "bank.safetensors"
    write_variant(path)
    verify = verify_against(IDENTITY)
    header_bytes = verify(path).header_bytes
    content = path.read_bytes()
    for place in [*range(0, header_bytes, 3), *range(header_bytes, len(content), 11)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x01]) + content[place + 1 :])
        with pytest.raises(InvalidArtifact):
            verify(path)


def test_a_variant_of_the_original_base_loads_on_its_compressed_form_when_accepted(
    root: Path,
) -> None:
    write_variant(root / "bank.safetensors")
    compressed = "sha256:" + "ef" * 32
    refused = Registry(root, BaseIdentity(compressed, IDENTITY.layout, 64))
    with pytest.raises(InvalidArtifact, match="--accept-derived"):
        refused.resolve("bank")
    derived = BaseIdentity(compressed, IDENTITY.layout, 64, accept_derived=IDENTITY.fingerprint)
    assert Registry(root, derived).resolve("bank").error is None


def load_now(registry: Registry, digest: str) -> Residency:
    """Load one digest as an engine would, woken by the loader."""
    bell = threading.Semaphore(0)
    place = Destination(
        IDENTITY.layout, base_vector, torch.float32, ReferenceBackend(), MaskCache()
    )

    def stage(content: Artifact) -> ResidentVariant:
        return stage_variant(content, place)

    loader = BackgroundLoader(load_files(registry.path, stage), on_finished=bell.release)
    residency = Residency(loader, 2**20)
    residency.request(digest)
    assert bell.acquire(timeout=30)
    assert len(residency.poll()) == 1
    loader.close()
    return residency


def test_a_good_file_becomes_resident(root: Path) -> None:
    digest = write_variant(root / "bank.safetensors")
    residency = load_now(Registry(root, IDENTITY), digest)
    variant = residency.get(digest)
    assert variant is not None
    assert variant.digest == digest
    assert set(variant.linears) == {"layers.0.qkv"}
    shared = sum(part.nbytes for part in variant.shared)
    assert residency.resident_bytes == variant.nbytes + shared > 0
    assert residency.snapshot()[digest].load_ms is not None


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip(-3), "digest"),
        (keep(-1), "truncated"),
        (Path.unlink, "No such file"),
        (lambda path: write_variant(path, seed=9), "now holds sha256:"),
    ],
    ids=["flipped", "truncated", "removed", "exchanged"],
)
def test_a_file_that_changes_after_the_scan_fails_when_it_is_loaded(
    root: Path, spoil: Spoil, reason: str
) -> None:
    digest = write_variant(root / "bank.safetensors")
    registry = Registry(root, IDENTITY)
    spoil(registry.path(digest))
    info = load_now(registry, digest).snapshot()[digest]
    assert info.state == "failed"
    assert reason in str(info.error)
