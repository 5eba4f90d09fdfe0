"""Changes from several threads at once: settled by digest, nothing lost."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from tsugiki.errors import CorruptArtifact, ModelNotFound
from tsugiki.variants.registry import Registry

PATIENCE = 20.0


def together(count: int) -> Callable[[Path], Header]:
    """A verification that ends for nobody before `count` threads are in it."""
    barrier = threading.Barrier(count)

    def verify(path: Path) -> Header:
        if "uploads" in path.parts:
            barrier.wait(PATIENCE)
        return verify_text(path)

    return verify


def test_uploads_of_one_name_verify_side_by_side_and_all_become_versions(root: Path) -> None:
    registry = open_registry(root, verify=together(8))
    with ThreadPoolExecutor(8) as pool:
        versions = list(pool.map(lambda i: put(registry, "bank", f"text {i}"), range(8)))
    assert {v.digest for v in registry.versions()} == {v.digest for v in versions}
    assert [v.active for v in registry.versions()].count(True) == 1
    assert len(registry.history("bank")) == 16
    assert picture(open_registry(root)) == picture(registry)


def test_uploads_of_one_content_are_new_once(root: Path) -> None:
    registry = open_registry(root, verify=together(8))
    paths = [registry.uploads() / f"u{i}" for i in range(8)]
    for path in paths:
        path.write_text("good same")
    with ThreadPoolExecutor(8) as pool:
        news = list(pool.map(lambda path: registry.put("bank", path)[1], paths))
    assert news.count(True) == 1
    assert len(registry.versions()) == 1
    assert files_below(root / ".tsugiki/uploads") == set()


def test_one_content_under_many_names_is_one_file_that_lasts_as_long_as_any(root: Path) -> None:
    registry = open_registry(root, verify=together(4))
    paths = {name: registry.uploads() / name for name in "abcd"}
    for path in paths.values():
        path.write_text("good same")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: registry.put(name, paths[name]), paths))
        list(pool.map(registry.delete, "abc"))
    assert registry.purge(digest_of("same")) == 0
    assert registry.resolve("d").path.read_text() == "good same"


def held(root: Path, change: Callable[[Registry], object]) -> Registry:
    """A registry in which `change` happened while an upload of "bank" was being verified."""
    inside, go_on = threading.Event(), threading.Event()

    def verify(path: Path) -> Header:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(PATIENCE)
        return verify_text(path)

    registry = open_registry(root, verify=verify)
    put(registry, "bank", "one")
    path = upload(registry, "two")
    with ThreadPoolExecutor(1) as pool:
        uploading = pool.submit(registry.put, "bank", path)
        assert inside.wait(PATIENCE)
        change(registry)
        go_on.set()
        assert uploading.result(PATIENCE)[1] is True
    return registry


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (lambda r: r.delete("bank"), {"two"}),
        (lambda r: put(r, "bank", "three"), {"one", "two", "three"}),
        (lambda r: (r.delete("bank"), r.purge(digest_of("one"))), {"two"}),
    ],
    ids=["delete", "another upload", "delete and purge"],
)
def test_a_change_does_not_wait_for_an_upload_that_is_verified(
    root: Path, change: Callable[[Registry], object], left: set[str]
) -> None:
    registry = held(root, change)
    assert {v.digest for v in registry.versions()} == {digest_of(text) for text in left}
    assert registry.resolve("bank").digest == digest_of("two"), "it was activated last"
    assert picture(open_registry(root)) == picture(registry)


def test_a_name_deleted_while_its_new_file_is_verified_stays_deleted(root: Path) -> None:
    place(root, "bank", "zero")
    deleted: list[object] = []

    def verify(path: Path) -> Header:
        if watching and not deleted:
            deleted.append("now")
            deleted.append(registry.delete("bank"))
        return verify_text(path)

    watching = False
    registry = open_registry(root, verify=verify)
    watching = True
    os.utime(root / "bank.safetensors", (1, 1))
    assert [*registry.rescan(), *registry.rescan(), *registry.rescan()] == []
    with pytest.raises(ModelNotFound):
        registry.resolve("bank")
    assert files_below(root / ".tsugiki/uploads") == set()


def test_of_two_uploads_of_one_content_on_trial_one_may_end_before_the_other(root: Path) -> None:
    registry = open_registry(root)
    both, first_is_over = threading.Barrier(2), threading.Event()
    found: list[Path] = []

    def first(header: Header) -> None:
        both.wait(PATIENCE)
        raise CorruptArtifact("refused")

    def second(header: Header) -> None:
        both.wait(PATIENCE)
        assert first_is_over.wait(PATIENCE)
        found.append(registry.path(header.digest))

    paths = [registry.uploads() / name for name in ("first", "second")]
    for path in paths:
        path.write_text("good same")
    with ThreadPoolExecutor(2) as pool:
        refused = pool.submit(registry.put, "bank", paths[0], trial=first)
        kept = pool.submit(registry.put, "bank", paths[1], trial=second)
        assert isinstance(refused.exception(PATIENCE), CorruptArtifact)
        first_is_over.set()
        assert kept.result(PATIENCE)[1] is True
    assert found == [paths[1]]
