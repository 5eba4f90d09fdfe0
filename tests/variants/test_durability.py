"""What is acknowledged is on disk: file synced, then renamed, then the folder synced, then told."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.variants.text_files import open_registry, place, put, upload
from tsugiki.variants.registry import Registry

CHANGES: dict[str, Callable[[Registry], object]] = {
    "put": lambda registry: registry.put("bank", upload(registry, "two")),
    "activate": lambda registry: registry.activate("bank", registry.versions()[1].digest),
    "canary": lambda registry: registry.canary("bank", registry.versions()[1].digest, 10),
    "rollback": lambda registry: registry.rollback("bank"),
    "delete version": lambda r: r.delete_version("bank", r.versions()[1].digest),
    "delete": lambda registry: registry.delete("bank"),
    "purge": lambda registry: registry.purge(registry.delete("bank")[0].digest),
    "take a file in": lambda registry: (
        place(registry.root, "placed", "new"),
        registry.rescan(),
        registry.rescan(),
    ),
}
Call = tuple[str, Path]  # "sync" | "rename" | "unlink", what


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every sync, rename and removal below the state directory, in order."""
    seen: list[Call] = []
    fsync, rename, unlink = os.fsync, os.replace, Path.unlink

    def note(call: str, path: Path) -> None:
        if ".tsugiki" in path.parts:
            seen.append((call, path))

    def noted_fsync(handle: int) -> None:
        fsync(handle)
        note("sync", Path(os.readlink(f"/proc/self/fd/{handle}")))

    def noted_rename(source: Path, target: Path) -> None:
        rename(source, target)
        note("rename", source)
        note("appears", target)

    def noted_unlink(path: Path, missing_ok: bool = False) -> None:
        if path.exists():
            note("unlink", path)
        unlink(path, missing_ok)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_rename)
    monkeypatch.setattr(Path, "unlink", noted_unlink)
    return seen


def unsynced_renames(calls: list[Call]) -> list[Path]:
    """Files that were renamed before their content was durable."""
    return [
        path
        for i, (call, path) in enumerate(calls)
        if call == "rename" and ("sync", path) not in calls[:i]
    ]


def unsynced_folders(calls: list[Call]) -> list[Path]:
    """Files whose appearance or removal was not made durable afterwards."""
    return [
        path
        for i, (call, path) in enumerate(calls)
        if call in ("appears", "unlink") and ("sync", path.parent) not in calls[i:]
    ]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_durable_when_the_call_returns(
    root: Path, calls: list[Call], change: str
) -> None:
    registry = open_registry(root)
    put(registry, "bank", "zero")
    put(registry, "bank", "one")
    calls.clear()
    CHANGES[change](registry)
    assert calls, "it must write"
    assert unsynced_renames(calls) == []
    assert unsynced_folders(calls) == []


def test_the_file_is_durable_before_the_record_names_it(root: Path, calls: list[Call]) -> None:
    registry = open_registry(root)
    put(registry, "bank", "zero")
    calls.clear()
    put(registry, "bank", "one")
    folders = [path.parent.name for call, path in calls if call == "appears"]
    assert folders == ["blobs", "aliases"]
    synced = [path.name for call, path in calls if call == "sync"]
    assert synced[1:] == ["blobs", "bank.tmp", "aliases"], "after the upload itself"


def test_a_new_folder_is_durable_before_anything_is_put_in_it(
    root: Path, calls: list[Call]
) -> None:
    put(open_registry(root), "bank", "one")
    first = next(i for i, (call, _) in enumerate(calls) if call == "appears")
    assert ("sync", root / ".tsugiki") in calls[:first]
