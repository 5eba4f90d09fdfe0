"""Names, versions and history; what survives a restart; what is never served."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.variants.text_files import (
    digest_of,
    files_below,
    open_registry,
    picture,
    put,
    upload,
    verify_text,
)
from tsugiki.codecs.metadata import Header
from tsugiki.errors import (
    Conflict,
    CorruptArtifact,
    InvalidArtifact,
    InvalidRequest,
    ModelNotFound,
    StorageFull,
)


def test_an_uploaded_variant_is_found_by_name_and_by_version(root: Path) -> None:
    registry = open_registry(root)
    version, is_new = registry.put("bank", upload(registry, "one"))
    assert is_new
    assert version.digest == digest_of("one")
    assert registry.resolve("bank") == version
    assert registry.resolve(f"bank@{version.digest}") == version
    assert registry.resolve(f"bank@{version.digest[:19]}") == version
    assert registry.path(version.digest).read_text() == "good one"
    assert (version.codec, version.bytes, version.active) == ("deltadq", 8, True)
    assert version.ratio == 8 * 8 * 2 / 8


def test_putting_the_same_content_again_is_not_new_and_changes_nothing(root: Path) -> None:
    registry = open_registry(root)
    first = put(registry, "bank", "one")
    before = files_below(root)
    again, is_new = registry.put("bank", upload(registry, "one"))
    assert (again, is_new) == (first, False)
    assert files_below(root) == before


def test_a_new_version_takes_over_and_rollback_returns(root: Path) -> None:
    registry = open_registry(root)
    one, two = put(registry, "bank", "one"), put(registry, "bank", "two")
    assert registry.resolve("bank").digest == two.digest
    assert registry.resolve(f"bank@{one.digest}").digest == one.digest
    assert registry.rollback("bank").digest == one.digest
    assert [v.digest for v in registry.versions()] == [one.digest, two.digest]
    assert registry.activate("bank", two.digest).digest == two.digest
    with pytest.raises(Conflict, match="earlier version"):
        [registry.rollback("bank") for _ in range(3)]


def test_a_version_that_is_not_activated_is_reached_by_digest_only(root: Path) -> None:
    registry = open_registry(root)
    version = put(registry, "bank", "one", activate=False)
    assert not version.active
    with pytest.raises(ModelNotFound, match=version.digest):
        registry.resolve("bank")
    assert registry.resolve(f"bank@{version.digest}") == version
    put(registry, "bank", "one")
    assert registry.resolve("bank").digest == version.digest


@pytest.mark.parametrize(
    "model",
    [
        "nobody",
        "",
        "bank@",
        "bank@sha256:",
        "bank@sha256:abc",
        "bank@sha256:" + "f" * 12,
        "../bank",
    ],
)
def test_an_unknown_name_or_version_is_not_found(root: Path, model: str) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    with pytest.raises(ModelNotFound):
        registry.resolve(model)


def test_a_prefix_that_two_versions_share_is_refused(root: Path) -> None:
    def clashing(path: Path) -> Header:
        header = verify_text(path)
        return replace(header, digest="sha256:" + "a" * 13 + header.digest[-51:])

    registry = open_registry(root, verify=clashing)
    put(registry, "bank", "one")
    put(registry, "bank", "two")
    with pytest.raises(InvalidRequest, match="ambiguous"):
        registry.resolve("bank@sha256:" + "a" * 12)


def test_a_restart_gives_the_same_picture(root: Path) -> None:
    (root / "placed.safetensors").write_text("good placed")
    (root / "broken.safetensors").write_text("bad")
    registry = open_registry(root)
    put(registry, "bank", "one")
    put(registry, "bank", "two")
    put(registry, "same", "two")
    put(registry, "placed", "newer")
    put(registry, "quiet", "three", activate=False)
    registry.rollback("bank")
    assert picture(open_registry(root)) == picture(registry)
    assert open_registry(root).resolve("bank").digest == digest_of("one")


def test_two_names_may_share_a_digest_and_one_deletion_leaves_the_other(root: Path) -> None:
    registry = open_registry(root)
    put(registry, "a", "one")
    put(registry, "b", "one")
    registry.delete("a")
    assert registry.purge(digest_of("one")) == 0
    assert open_registry(root).resolve("b").digest == digest_of("one")


def test_a_deleted_name_is_gone_at_once_and_its_file_when_purged(root: Path) -> None:
    (root / "bank.safetensors").write_text("good zero")
    registry = open_registry(root)
    put(registry, "bank", "one")
    assert [v.digest for v in registry.delete("bank")] == [digest_of("one"), digest_of("zero")]
    with pytest.raises(ModelNotFound):
        registry.resolve("bank")
    assert registry.path(digest_of("zero")).read_text() == "good zero"
    assert registry.purge(digest_of("one")) == len("good one")
    assert registry.purge(digest_of("one")) == 0
    assert registry.purge(digest_of("zero")) == len("good zero")
    with pytest.raises(ModelNotFound):
        registry.path(digest_of("one"))
    assert files_below(root) == set()


def test_what_was_deleted_but_not_purged_goes_at_the_next_start(root: Path) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    registry.delete("bank")
    assert open_registry(root).versions() == []
    assert files_below(root) == set()


def test_a_name_can_come_back_before_its_old_file_was_purged(root: Path) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    registry.delete("bank")
    assert registry.put("bank", upload(registry, "one"))[1] is True
    assert registry.purge(digest_of("one")) == 0
    assert registry.resolve("bank").digest == digest_of("one")


@pytest.mark.parametrize("action", ["delete", "rollback"])
def test_changing_an_unknown_name_is_not_found(root: Path, action: str) -> None:
    with pytest.raises(ModelNotFound, match="nobody"):
        getattr(open_registry(root), action)("nobody")


@pytest.mark.parametrize(
    "name",
    [
        *("", ".", "..", "../x", "a/b", "/etc/passwd", ".hidden", "a\\b", "a\0b", "a\n"),
        *("-x", "_x", "a b", "ä", "a" * 129, "%2e%2e", "a@b"),
    ],
)
def test_names_that_could_leave_the_directory_are_refused(root: Path, name: str) -> None:
    registry = open_registry(root)
    path = upload(registry, "one")
    with pytest.raises(InvalidRequest):
        registry.put(name, path)
    assert files_below(root.parent) == set()


def test_the_name_of_the_base_is_refused(root: Path) -> None:
    (root / "base.safetensors").write_text("good zero")
    registry = open_registry(root, reserved=["base"])
    assert registry.versions()[0].error is not None
    with pytest.raises(InvalidRequest, match="base's own name"):
        put(registry, "base", "one")


def test_a_bad_upload_is_refused_and_leaves_nothing(root: Path) -> None:
    registry = open_registry(root)
    path = upload(registry, "rubbish", good=False)
    with pytest.raises(CorruptArtifact, match="'bank' is refused: not good") as caught:
        registry.put("bank", path)
    assert str(root) not in str(caught.value)
    assert files_below(root) == set()
    assert registry.versions() == []


@pytest.mark.parametrize("kind", ["link", "directory", "missing", "pipe"])
def test_an_upload_that_is_no_regular_file_is_refused(root: Path, kind: str) -> None:
    registry = open_registry(root)
    path = registry.uploads() / "upload"
    secret = root.parent / "secret"
    secret.write_text("good secret")
    make: dict[str, Callable[[], object]] = {
        "link": lambda: path.symlink_to(secret),
        "directory": path.mkdir,
        "missing": lambda: None,
        "pipe": lambda: os.mkfifo(path),
    }
    make[kind]()
    with pytest.raises(InvalidRequest, match="regular file"):
        registry.put("bank", path)
    assert secret.exists()


def test_an_uploaded_file_that_rots_is_failed_and_mended_by_uploading_it_again(root: Path) -> None:
    registry = open_registry(root)
    version = put(registry, "bank", "one")
    version.path.write_text("rot")
    registry = open_registry(root)
    (failed,) = registry.versions()
    assert (failed.digest, failed.error) == (version.digest, "not good")
    with pytest.raises(InvalidArtifact):
        registry.resolve("bank")
    assert registry.put("bank", upload(registry, "one"))[1] is False
    assert registry.resolve("bank").error is None


def test_an_uploaded_file_that_holds_another_variant_is_failed(root: Path) -> None:
    version = put(open_registry(root), "bank", "one")
    version.path.write_text("good two")
    with pytest.raises(InvalidArtifact, match=digest_of("two")):
        open_registry(root).resolve("bank")


def test_an_uploaded_file_that_is_gone_fails_its_name_and_rollback_still_works(root: Path) -> None:
    registry = open_registry(root)
    put(registry, "bank", "one")
    put(registry, "bank", "two").path.unlink()
    registry = open_registry(root)
    with pytest.raises(InvalidArtifact, match="gone"):
        registry.resolve("bank")
    assert registry.rollback("bank").digest == digest_of("one")


@pytest.mark.parametrize(("code", "error"), [(28, StorageFull), (122, StorageFull)])
def test_a_full_disk_refuses_the_upload_and_keeps_nothing_of_it(
    root: Path, code: int, error: type[Exception]
) -> None:
    def full(step: str) -> None:
        if step == "alias written":
            raise OSError(code, "no space")

    registry = open_registry(root, crash_point=full)
    with pytest.raises(error, match="full"):
        put(registry, "bank", "one")
    assert registry.versions() == []
    assert files_below(root) == set()
    assert open_registry(root).versions() == []
