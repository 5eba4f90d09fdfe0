"""kill -9 between any two steps of a change: afterwards it was done wholly, or not at all."""

import base64
import contextlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.variants.text_files import digest_of, open_registry, place, upload
from tsugiki.variants.registry import Registry

SAVE = ["alias written", "alias in place"]
STEPS = {
    "put": ["upload synced", "blob in place", *SAVE],
    "put signed": ["upload synced", "blob in place", *SAVE],
    "rollback": SAVE,
    "activate": SAVE,
    "canary": SAVE,
    "end of a canary": SAVE,
    "delete": [*SAVE, "file taken away", "record removed"],
    "delete version": SAVE,
    "delete placed version": [*SAVE, "file taken away"],
    "file added": ["upload synced", "blob in place", *SAVE],
    "file replaced": ["upload synced", "blob in place", *SAVE],
    "file removed": SAVE,
}
CHANGES: dict[str, Callable[[Registry], object]] = {
    "put": lambda registry: registry.put("bank", upload(registry, "two")),
    "put signed": lambda registry: registry.put("bank", upload(registry, "one"), True, SIGNATURE),
    "rollback": lambda registry: registry.rollback("bank"),
    "activate": lambda registry: registry.activate("bank", digest_of("quiet")),
    "canary": lambda registry: registry.canary("bank", digest_of("quiet"), 40),
    "end of a canary": lambda registry: registry.rollback("neighbour"),
    "delete": lambda registry: registry.delete("bank"),
    "delete version": lambda registry: registry.delete_version("bank", digest_of("quiet")),
    "delete placed version": lambda registry: registry.delete_version("bank", digest_of("zero")),
    "file added": lambda registry: placed(registry, "new", "new"),
    "file replaced": lambda registry: placed(registry, "bank", "other"),
    "file removed": lambda registry: unplaced(registry, "bank"),
}
ACTS_OF_THE_OPERATOR = [change for change in CHANGES if change.startswith("file")]
AT_START = {"delete": ["file taken away", "record removed"], "file added": STEPS["file added"]}
SIGNATURE = base64.b64encode(b"s" * 64).decode()


def placed(registry: Registry, name: str, text: str) -> None:
    """A file of the operator, and the two looks that take it in."""
    place(registry.root, name, text)
    registry.rescan()
    registry.rescan()


def unplaced(registry: Registry, name: str) -> None:
    """A file of the operator removed, and the two looks that notice."""
    (registry.root / f"{name}.safetensors").unlink(missing_ok=True)
    registry.rescan()
    registry.rescan()


Meaning = dict[str, tuple[str | None, frozenset[str], dict[str, float], frozenset[str]]]


def meaning(registry: Registry) -> Meaning:
    """Every name with its active digest, all its digests, its canary and the history's actions;
    nothing in it may have failed."""
    assert [v for v in registry.versions() if v.error] == []
    names = {v.name for v in registry.versions()}
    return {
        name: (
            active.digest if (active := registry.active(name)) else None,
            frozenset(v.digest for v in registry.versions() if v.name == name),
            {v.digest: v.canary_percent for v in registry.versions() if v.name == name},
            frozenset(f"{entry.action} {entry.digest}" for entry in registry.history(name)),
        )
        for name in names
    }


def prepare(root: Path) -> Registry:
    """A name with an operator's file and two uploads, and a neighbour that shares one of them and
    has a canary."""
    place(root, "bank", "zero")
    registry = open_registry(root)
    registry.put("bank", upload(registry, "quiet"), activate=False)
    registry.put("bank", upload(registry, "one"))
    registry.put("neighbour", upload(registry, "one"))
    registry.put("neighbour", upload(registry, "next"), activate=False)
    registry.canary("neighbour", digest_of("next"), 30)
    return registry


def killed_at(root: Path, step: str, change: Callable[[Registry], object]) -> None:
    """Run `change` in a child process that is killed at `step`, this start included."""

    def crash(done: str) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            change(open_registry(root, crash_point=crash))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), f"the child never reached {step!r}"


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("change", "step"), [(change, step) for change in CHANGES for step in STEPS[change]]
)
def test_a_change_that_is_killed_was_done_wholly_or_not_at_all(
    root: Path, tmp_path: Path, change: str, step: str
) -> None:
    before = meaning(prepare(root))
    killed_at(root, step, CHANGES[change])
    after = meaning(open_registry(root))
    other = tmp_path / "undisturbed"
    other.mkdir()
    undisturbed = prepare(other)
    CHANGES[change](undisturbed)
    assert after in (before, meaning(undisturbed))
    if change in ACTS_OF_THE_OPERATOR:
        assert after == meaning(undisturbed), "the file says what is meant"
    assert meaning(open_registry(root)) == after
    for version in open_registry(root).versions():
        assert version.path.read_text().startswith("good ")
    assert list((root / ".tsugiki/uploads").iterdir()) == []
    assert list(root.rglob("*.tmp")) == []
    kept = {path.stem for path in (root / ".tsugiki/blobs").iterdir()}
    assert kept == {v.digest.removeprefix("sha256:") for v in open_registry(root).versions()}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_signature_is_stored_wholly_or_not_at_all(root: Path) -> None:
    for step in STEPS["put signed"]:
        prepare(root)
        killed_at(root, step, CHANGES["put signed"])
        signatures = [v.get("signature") for v in record(root, "bank")["versions"]]
        assert set(signatures) <= {None, SIGNATURE}
        assert (SIGNATURE in signatures) == (step == "alias in place")
        open_registry(root).delete("bank")


def record(root: Path, name: str) -> dict:  # type: ignore[type-arg]
    return dict(json.loads((root / f".tsugiki/aliases/{name}.json").read_text()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", AT_START["delete"])
def test_a_start_that_is_killed_while_it_tidies_up_is_finished_by_the_next(
    root: Path, step: str
) -> None:
    prepare(root)
    killed_at(root, "alias in place", CHANGES["delete"])
    killed_at(root, step, lambda registry: None)
    assert list(meaning(open_registry(root))) == ["neighbour"]
    assert not (root / "bank.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", AT_START["file added"])
def test_a_start_that_is_killed_while_it_takes_a_file_in_is_finished_by_the_next(
    root: Path, step: str
) -> None:
    prepare(root)
    place(root, "new", "new")
    killed_at(root, step, lambda registry: None)
    assert open_registry(root).resolve("new").digest == digest_of("new")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("change", ["delete", "delete placed version"])
def test_a_file_placed_after_a_killed_deletion_is_not_deleted(root: Path, change: str) -> None:
    prepare(root)
    killed_at(root, "alias in place", CHANGES[change])
    place(root, "bank", "new")
    assert open_registry(root).resolve("bank").digest == digest_of("new")
    assert open_registry(root).resolve("bank").digest == digest_of("new")
