"""The operator's directory: what a file there means at a start, and while the server runs."""

import os
from collections.abc import Callable
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
    verify_text,
)
from tsugiki.codecs.metadata import Header
from tsugiki.errors import Conflict, InvalidArtifact, ModelNotFound, Unsupported
from tsugiki.variants.registry import Registry
from tsugiki.variants.watch import Change


def looked(registry: Registry) -> list[tuple[str, str, str]]:
    """Two looks, as a still file needs; (name, kind, digest) of every change."""
    changes = [*registry.rescan(), *registry.rescan()]
    return [(change.name, change.kind, change.digest) for change in changes]


def recording(opened: list[Path]) -> Callable[[Path], Header]:
    """A verification that notes which files it opens."""

    def verify(path: Path) -> Header:
        opened.append(path)
        return verify_text(path)

    return verify


def test_a_placed_file_is_served_from_a_copy_that_nobody_writes_over(root: Path) -> None:
    place(root, "bank", "zero")
    (root / "bank.safetensors").chmod(0o600)
    registry = open_registry(root)
    version = registry.resolve("bank")
    place(root, "bank", "other")
    assert registry.path(version.digest).read_text() == "good zero"
    assert registry.path(version.digest).stat().st_mode & 0o777 == 0o600
    assert (root / "bank.safetensors").read_text() == "good other"


def test_a_placed_file_is_a_version_like_any_other(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    put(registry, "bank", "one")
    registry = open_registry(root)
    assert registry.resolve("bank").digest == digest_of("one")
    assert registry.rollback("bank").digest == digest_of("zero")
    assert open_registry(root).resolve("bank").digest == digest_of("zero")
    assert registry.activate("bank", digest_of("one")).digest == digest_of("one")
    assert registry.activate("bank", digest_of("zero")).digest == digest_of("zero")


def test_a_start_opens_no_file_that_is_known(root: Path) -> None:
    place(root, "bank", "zero")
    open_registry(root)
    opened: list[Path] = []
    registry = open_registry(root, verify=recording(opened))
    assert [path.parent.name for path in opened] == ["blobs"]
    assert registry.resolve("bank").digest == digest_of("zero")


def test_content_both_placed_and_uploaded_is_one_version_that_outlives_the_file(root: Path) -> None:
    place(root, "bank", "one")
    registry = open_registry(root)
    assert registry.put("bank", upload(registry, "one"))[1] is False
    assert [v.digest for v in open_registry(root).versions()] == [digest_of("one")]
    (root / "bank.safetensors").unlink()
    assert looked(registry) == []
    assert registry.resolve("bank").digest == digest_of("one")
    assert open_registry(root).resolve("bank").digest == digest_of("one")


def test_a_bad_placed_file_is_listed_as_failed_and_never_served(root: Path) -> None:
    place(root, "bank", "rubbish", good=False)
    registry = open_registry(root)
    (version,) = registry.versions()
    assert (version.name, version.error, version.bytes) == ("bank", "not good", 7)
    with pytest.raises(InvalidArtifact, match="not good"):
        registry.resolve("bank")
    assert registry.history("bank") == ()
    registry.delete("bank")
    assert files_below(root) == set()


@pytest.mark.parametrize("kind", ["link outside", "directory", "pipe", "odd name", "dangling"])
def test_a_placed_thing_that_is_no_variant_is_failed(root: Path, kind: str) -> None:
    path = root / ("odd name.safetensors" if kind == "odd name" else "bank.safetensors")
    outside = root.parent / "outside.safetensors"
    outside.write_text("good outside")
    make: dict[str, Callable[[], object]] = {
        "link outside": lambda: path.symlink_to(outside),
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "odd name": lambda: path.write_text("good"),
        "dangling": lambda: path.symlink_to(root / "nothing"),
    }
    make[kind]()
    registry = open_registry(root)
    (version,) = registry.versions()
    assert version.error is not None
    assert str(root) not in version.error
    assert looked(registry) == []


def test_a_link_within_the_directory_is_served_and_deleted_as_a_link(root: Path) -> None:
    place(root, "real", "zero")
    (root / "link.safetensors").symlink_to(root / "real.safetensors")
    registry = open_registry(root)
    assert registry.resolve("link").digest == registry.resolve("real").digest
    registry.delete("link")
    assert not (root / "link.safetensors").is_symlink()
    assert registry.path(registry.resolve("real").digest).read_text() == "good zero"


def replaced(root: Path) -> None:
    place(root, "bank", "other")


def removed(root: Path) -> None:
    (root / "bank.safetensors").unlink()


def broken(root: Path) -> None:
    place(root, "bank", "rubbish", good=False)


def added(root: Path) -> None:
    place(root, "new", "new")


def touched(root: Path) -> None:
    os.utime(root / "bank.safetensors", (1, 1))


DIGEST = digest_of("zero")
ACTS: list[tuple[Callable[[Path], None], list[tuple[str, str, str]]]] = [
    (replaced, [("bank", "changed", digest_of("other"))]),
    (removed, [("bank", "removed", DIGEST)]),
    (broken, [("bank", "failed", "")]),
    (added, [("new", "added", digest_of("new"))]),
    (touched, []),
]


@pytest.mark.parametrize(("act", "changes"), ACTS)
def test_what_the_operator_does_means_the_same_while_running_and_at_a_start(
    root: Path, act: Callable[[Path], None], changes: list[tuple[str, str, str]]
) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    put(registry, "other", "one")
    act(root)
    assert looked(registry) == changes
    assert looked(registry) == []
    assert picture(open_registry(root)) == picture(registry)
    if registry.active("bank") is not None:
        assert registry.path(DIGEST).read_text() == "good zero", "what runs goes on"


@pytest.mark.parametrize(("act", "changes"), ACTS)
def test_what_the_operator_did_while_no_server_ran_is_found_at_the_start(
    root: Path, act: Callable[[Path], None], changes: list[tuple[str, str, str]]
) -> None:
    place(root, "bank", "zero")
    running = open_registry(root)
    act(root)
    started = open_registry(root)
    assert looked(started) == []
    assert looked(running) == changes or not changes
    assert picture(started) == picture(running)


def test_a_replaced_file_takes_over_and_its_old_version_can_return(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    place(root, "bank", "other")
    looked(registry)
    assert registry.resolve("bank").digest == digest_of("other")
    assert registry.resolve(f"bank@{DIGEST}").digest == DIGEST
    assert registry.rollback("bank").digest == DIGEST
    assert open_registry(root).resolve("bank").digest == DIGEST


def test_a_removed_file_refuses_new_requests_and_stays_readable_until_purged(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    place(root, "bank", "other")
    looked(registry)
    removed(root)
    gone = {digest for _, kind, digest in looked(registry) if kind == "removed"}
    assert gone == {DIGEST, digest_of("other")}
    with pytest.raises(ModelNotFound):
        registry.resolve("bank")
    assert registry.path(DIGEST).read_text() == "good zero"
    assert {registry.purge(digest) for digest in gone} == {9, 10}
    assert files_below(root) == set()


def test_a_removed_file_leaves_the_uploads_of_its_name_but_none_takes_its_place(
    root: Path,
) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    put(registry, "bank", "one")
    registry.rollback("bank")
    removed(root)
    looked(registry)
    with pytest.raises(ModelNotFound, match=digest_of("one")):
        registry.resolve("bank")
    with pytest.raises(Conflict):
        registry.rollback("bank")
    assert picture(open_registry(root)) == picture(registry)
    assert registry.activate("bank", digest_of("one")).active


def test_a_file_that_breaks_leaves_the_version_before_it_and_its_repair_is_taken(
    root: Path,
) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    broken(root)
    (change,) = [*registry.rescan(), *registry.rescan()]
    assert change == Change("bank", "failed", "", "not good")
    assert registry.resolve("bank").digest == DIGEST
    assert [v.error for v in registry.versions()] == [None, "not good"]
    place(root, "bank", "zero")
    assert looked(registry) == [("bank", "changed", DIGEST)]
    assert picture(registry) == [("bank", DIGEST, True, True)]


def test_a_file_that_is_still_being_copied_waits(root: Path) -> None:
    registry = open_registry(root)
    path = root / "bank.safetensors"
    for size in range(1, 9):
        path.write_text("good two"[:size])
        os.utime(path, (size, size))
        assert registry.rescan() == []
        assert registry.versions() == []
    assert looked(registry) == [("bank", "added", digest_of("two"))]


def test_a_copy_that_stalls_half_way_is_failed_never_served_and_taken_when_it_is_whole(
    root: Path,
) -> None:
    registry = open_registry(root)
    path = root / "bank.safetensors"
    path.write_text("goo")
    assert looked(registry) == [("bank", "failed", "")]
    path.write_text("good two")
    assert looked(registry) == [("bank", "added", digest_of("two"))]


def test_a_file_that_changes_while_it_is_verified_waits_for_another_look(root: Path) -> None:
    def replacing(path: Path) -> Header:
        header = verify_text(path)
        if header.digest == digest_of("one"):
            place(root, "bank", "two")
        return header

    registry = open_registry(root, verify=replacing)
    place(root, "bank", "one")
    assert looked(registry) == []
    assert registry.versions() == []
    assert looked(registry) == [("bank", "added", digest_of("two"))]
    assert files_below(root / ".tsugiki/uploads") == set()


def test_a_look_at_a_directory_where_nothing_changed_opens_no_file(root: Path) -> None:
    place(root, "bank", "zero")
    broken_file = root / "broken.safetensors"
    broken_file.write_text("rubbish")
    opened: list[Path] = []
    registry = open_registry(root, verify=recording(opened))
    opened.clear()
    assert looked(registry) == []
    assert opened == []


def test_deleting_a_version_takes_the_operators_file_that_holds_it(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    put(registry, "bank", "one")
    assert registry.delete_version("bank", DIGEST).digest == DIGEST
    assert not (root / "bank.safetensors").exists()
    assert looked(registry) == []
    assert picture(open_registry(root)) == picture(registry)


def test_a_broken_file_that_comes_and_goes_takes_no_version_with_it(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    replaced(root)
    looked(registry)
    registry.activate("bank", DIGEST)
    registry.delete_version("bank", digest_of("other"))
    broken(root)
    assert looked(registry) == [("bank", "failed", "")]
    assert registry.resolve("bank").digest == DIGEST
    removed(root)
    assert looked(registry) == [("bank", "removed", "")]
    assert registry.resolve("bank").digest == DIGEST
    assert picture(open_registry(root)) == picture(registry)


def test_a_file_placed_after_the_last_look_survives_the_deletion_of_its_name(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    place(root, "bank", "other")
    registry.delete("bank")
    assert looked(registry) == [("bank", "added", digest_of("other"))]


def test_a_file_touched_after_the_last_look_goes_with_its_name(root: Path) -> None:
    place(root, "bank", "zero")
    registry = open_registry(root)
    touched(root)
    registry.delete("bank")
    assert looked(registry) == []
    assert not (root / "bank.safetensors").exists()


def test_a_directory_that_cannot_be_written_is_served_but_takes_no_changes(root: Path) -> None:
    place(root, "placed", "placed")
    place(root, "same", "placed")
    put(open_registry(root), "bank", "one")
    place(root, "later", "later")

    def read_only(step: str) -> None:
        raise OSError(30, "Read-only file system")

    registry = open_registry(root, crash_point=read_only)
    assert registry.path(registry.resolve("later").digest) == root / "later.safetensors"
    assert registry.resolve("placed").error is None
    for change in (
        lambda: put(registry, "bank", "two"),
        lambda: registry.delete("bank"),
    ):
        with pytest.raises(Unsupported, match="cannot be written"):
            change()
    assert registry.resolve("bank").digest == digest_of("one")
    place(root, "later", "newer")
    assert looked(registry) == [("later", "changed", digest_of("newer"))]
    with pytest.raises(InvalidArtifact, match="gone"):
        registry.resolve(f"later@{digest_of('later')}")
    (root / "later.safetensors").unlink()
    assert looked(registry) == [
        ("later", "removed", digest_of("later")),
        ("later", "removed", digest_of("newer")),
    ]
