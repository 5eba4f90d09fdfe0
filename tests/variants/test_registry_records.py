"""Records of names on disk: old ones, damaged ones; what a start tidies up; one writer."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.variants.text_files import (
    digest_of,
    files_below,
    open_registry,
    picture,
    place,
    put,
    upload,
)
from tsugiki.errors import ConfigError, InvalidArtifact, UserError
from tsugiki.variants.store import claim

RECORD = ".tsugiki/aliases/bank.json"


def old_record(activations: list[str], uploads: list[str]) -> str:
    """As 0.1.0 wrote it."""
    versions = [{"digest": digest_of(text), "created": 7} for text in uploads]
    fields = {"name": "bank", "versions": versions, "activations": activations, "deleted": False}
    return json.dumps(fields, indent=1)


def test_a_record_of_0_1_0_is_read_and_gains_a_history(root: Path) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    put(registry, "bank", "two")
    (root / RECORD).write_text(
        old_record([digest_of("one"), digest_of("two")], uploads=["one", "two"])
    )
    registry = open_registry(root)
    assert registry.resolve("bank").digest == digest_of("two")
    assert registry.history("bank") == ()
    assert registry.rollback("bank").digest == digest_of("one")
    (entry,) = open_registry(root).history("bank")
    assert (entry.digest, entry.action) == (digest_of("one"), "rollback")


@pytest.mark.parametrize("active", ["file", "upload"])
def test_an_operators_file_in_a_record_of_0_1_0_becomes_a_version(root: Path, active: str) -> None:
    put(open_registry(root), "bank", "one")
    place(root, "bank", "zero")
    stack = ["file", digest_of("one")] + (["file"] if active == "file" else [])
    (root / RECORD).write_text(old_record(stack, uploads=["one"]))
    registry = open_registry(root)
    expected = digest_of("zero") if active == "file" else digest_of("one")
    assert registry.resolve("bank").digest == expected
    assert {v.digest for v in registry.versions()} == {digest_of("zero"), digest_of("one")}
    assert picture(open_registry(root)) == picture(registry)
    other = {digest_of("zero"): digest_of("one"), digest_of("one"): digest_of("zero")}
    assert registry.rollback("bank").digest == other[expected]


@pytest.mark.parametrize("file", ["missing", "broken"])
def test_a_record_of_0_1_0_whose_active_file_is_not_there_answers_nobody(
    root: Path, file: str
) -> None:
    put(open_registry(root), "bank", "one")
    (root / RECORD).write_text(old_record([digest_of("one"), "file"], uploads=["one"]))
    if file == "broken":
        place(root, "bank", "rubbish", good=False)
    registry = open_registry(root)
    with pytest.raises(UserError, match=r"no version of 'bank'|not good"):
        registry.resolve("bank")
    assert registry.resolve(f"bank@{digest_of('one')}").error is None


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", '{"name": "other"}', '{"name": "bank"}', "null", "\x00"),
        old_record([], uploads=["one"]).replace('"bank"', '"other"'),
        old_record(["../../x"], uploads=["one"]),
        old_record([], uploads=["one"]).replace("sha256:", "sha1:"),
        old_record([], uploads=["one"]).replace("7", '"7"'),
        old_record([], uploads=["one"]).replace("false", "0"),
    ],
)
def test_a_damaged_record_fails_its_name_and_keeps_the_files(root: Path, content: str) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    put(registry, "other", "two")
    (root / RECORD).write_text(content)
    registry = open_registry(root)
    with pytest.raises(InvalidArtifact, match=r"bank\.json is damaged"):
        registry.resolve("bank")
    assert registry.resolve("other").error is None
    put(registry, "bank", "one")
    assert open_registry(root).resolve("bank").digest == digest_of("one")


def test_a_record_with_any_altered_byte_is_refused_or_means_the_same(root: Path) -> None:
    put(open_registry(root), "bank", "one")
    record = root / RECORD
    before, content = picture(open_registry(root)), record.read_bytes()
    for place_ in range(0, len(content), 7):
        altered = bytearray(content)
        altered[place_] ^= 0x04
        record.write_bytes(altered)
        registry = open_registry(root)
        refused = [v.error for v in registry.versions() if v.error]
        assert refused or picture(registry) == before
        assert registry.path(digest_of("one")).exists(), "its file stays until the record is mended"


def test_a_damaged_record_is_mended_by_placing_another_file(root: Path) -> None:
    place(root, "bank", "zero")
    open_registry(root)
    (root / RECORD).write_text("{")
    registry = open_registry(root)
    assert [v.error is None for v in registry.versions()] == [False]
    place(root, "bank", "other")
    changes = [*registry.rescan(), *registry.rescan()]
    assert [change.kind for change in changes] == ["added"]
    assert registry.resolve("bank").digest == digest_of("other")


def test_what_a_crash_left_is_removed_at_start_but_not_what_can_be_resumed(root: Path) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    upload(registry, "half")
    uploads = root / ".tsugiki/uploads"
    for name in ("new.partial", "new.partial.json", "old.partial", "old.partial.json", "a.copy"):
        (uploads / name).write_text("half")
    (uploads / "link.partial").symlink_to(uploads / "a.copy")
    for name in ("old.partial", "old.partial.json"):
        os.utime(uploads / name, (0, time.time() - 25 * 3600))
    (root / ".tsugiki/aliases/bank.tmp").write_text("{")
    open_registry(root)
    assert files_below(uploads) == {"new.partial", "new.partial.json"}
    assert not (root / ".tsugiki/aliases/bank.tmp").exists()


HOLD = """
import sys
from pathlib import Path
from tsugiki.variants.directory_lock import DirectoryLock
lock = DirectoryLock(Path(sys.argv[1]), Path(sys.argv[1]).parent)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_server_on_one_directory_is_refused_until_the_first_is_dead(root: Path) -> None:
    state = root / ".tsugiki"
    state.mkdir()
    command = [sys.executable, "-c", HOLD, str(state / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match=f"{root} is in use.* process {other.pid};"):
            open_registry(root, directory=claim(root))
        other.kill()
    registry = open_registry(root, directory=claim(root))
    with pytest.raises(ConfigError, match=f"process {os.getpid()};"):
        open_registry(root, directory=claim(root))
    registry.close()
    open_registry(root, directory=claim(root)).close()


def test_a_directory_that_cannot_be_written_is_served_without_a_lock(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(root, "bank", "zero")

    def refuse(path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    registry = open_registry(root, directory=claim(root))
    assert registry.resolve("bank").digest == digest_of("zero")
    assert files_below(root) == {"bank.safetensors"}


def test_a_directory_that_is_not_there_is_made(root: Path) -> None:
    registry = open_registry(root / "a" / "b")
    put(registry, "bank", "one")
    assert open_registry(root / "a" / "b").resolve("bank").digest == digest_of("one")


def test_a_file_in_place_of_the_directory_is_refused_by_name(root: Path) -> None:
    (root / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"--variants .*/file is no directory"):
        claim(root / "file")
