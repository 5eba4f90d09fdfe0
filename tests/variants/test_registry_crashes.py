"""kill -9 between any two steps of a change: afterwards it was done wholly, or not at all."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.variants.text_files import digest_of, open_registry, upload
from tsugiki.errors import Conflict, ModelNotFound
from tsugiki.variants.registry import Registry

STEPS = {
    "put": ["upload synced", "blob in place", "alias written", "alias in place"],
    "rollback": ["alias written", "alias in place"],
    "activate": ["alias written", "alias in place"],
    "delete": ["alias written", "alias in place", "file taken away", "record removed"],
    "start": ["file taken away", "record removed"],
}
CHANGES: dict[str, Callable[[Registry], object]] = {
    "put": lambda registry: registry.put("bank", upload(registry, "two")),
    "rollback": lambda registry: registry.rollback("bank"),
    "activate": lambda registry: registry.activate("bank", digest_of("quiet")),
    "delete": lambda registry: registry.delete("bank"),
}


def meaning(registry: Registry) -> dict[str, tuple[str | None, frozenset[str]]]:
    """Every name with its active digest and all its digests; nothing in it may have failed."""
    assert [v for v in registry.versions() if v.error] == []
    names = {v.name for v in registry.versions()}
    return {
        name: (
            active.digest if (active := registry.active(name)) else None,
            frozenset(v.digest for v in registry.versions() if v.name == name),
        )
        for name in names
    }


def prepare(root: Path) -> Registry:
    """A name with an operator's file and two uploads, and a neighbour that shares one of them."""
    (root / "bank.safetensors").write_text("good zero")
    registry = open_registry(root)
    registry.put("bank", upload(registry, "quiet"), activate=False)
    registry.put("bank", upload(registry, "one"))
    registry.put("neighbour", upload(registry, "one"))
    return registry


def killed_at(root: Path, step: str, change: Callable[[Registry], object]) -> None:
    """Run `change` in a child process that is killed at `step`."""

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
    assert meaning(open_registry(root)) == after
    for version in open_registry(root).versions():
        assert version.path.read_text().startswith("good ")
    assert list((root / ".tsugiki/uploads").iterdir()) == []
    assert list(root.rglob("*.tmp")) == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("step", STEPS["start"])
def test_a_start_that_is_killed_while_it_tidies_up_is_finished_by_the_next(
    root: Path, step: str
) -> None:
    prepare(root)
    killed_at(root, "alias in place", CHANGES["delete"])
    killed_at(root, step, lambda registry: None)
    assert list(meaning(open_registry(root))) == ["neighbour"]
    assert not (root / "bank.safetensors").exists()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_placed_after_a_killed_deletion_is_not_deleted(root: Path) -> None:
    prepare(root)
    killed_at(root, "alias in place", CHANGES["delete"])
    (root / "bank.safetensors").write_text("good new")
    assert open_registry(root).resolve("bank").digest == digest_of("new")
    assert open_registry(root).resolve("bank").digest == digest_of("new")


class Crash(BaseException):
    """Stands for the end of the process; nothing catches it."""


NAMES = st.sampled_from(["a", "b"])
TEXTS = st.sampled_from(["one", "two", "three"])
Model = dict[str, tuple[list[str], set[str]]]  # name -> (activations, digests)


class RegistryMachine(RuleBasedStateMachine):
    """Changes in any order, each perhaps cut off at any step, with restarts between them."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.root = Path(self.directory.name)
        self.crash_after: int | None = None
        self.model: Model = {}
        self.start()

    def teardown(self) -> None:
        self.directory.cleanup()

    def start(self) -> None:
        self.crash_after = None
        self.registry = open_registry(self.root, crash_point=self.step)

    def step(self, name: str) -> None:
        if self.crash_after is not None:
            self.crash_after -= 1
            if self.crash_after < 0:
                raise Crash(name)

    def change(self, crash_after: int | None, act: Callable[[], object], after: Model) -> None:
        """Apply a change; when it crashes, a restart must find the model before or after it."""
        self.crash_after = crash_after
        try:
            act()
            self.model = after
        except Crash:
            self.start()
            if self.seen() == self.shown(after):
                self.model = after
        self.crash_after = None

    def copy(self) -> Model:
        return {name: (list(stack), set(digests)) for name, (stack, digests) in self.model.items()}

    def shown(self, model: Model) -> dict[str, tuple[str | None, frozenset[str]]]:
        return {n: (s[-1] if s else None, frozenset(d)) for n, (s, d) in model.items()}

    def seen(self) -> dict[str, tuple[str | None, frozenset[str]]]:
        return meaning(self.registry)

    @rule(name=NAMES, text=TEXTS, activate=st.booleans(), crash=st.none() | st.integers(0, 4))
    def put(self, name: str, text: str, activate: bool, crash: int | None) -> None:
        after = self.copy()
        stack, digests = after.setdefault(name, ([], set()))
        digests.add(digest_of(text))
        if activate and stack[-1:] != [digest_of(text)]:
            stack.append(digest_of(text))
        path = upload(self.registry, text)
        self.change(crash, lambda: self.registry.put(name, path, activate), after)

    @rule(name=NAMES, crash=st.none() | st.integers(0, 2))
    def rollback(self, name: str, crash: int | None) -> None:
        after = self.copy()
        if name not in after:
            with pytest.raises(ModelNotFound):
                self.registry.rollback(name)
        elif len(after[name][0]) < 2:
            with pytest.raises(Conflict):
                self.registry.rollback(name)
        else:
            after[name][0].pop()
            self.change(crash, lambda: self.registry.rollback(name), after)

    @rule(name=NAMES, crash=st.none() | st.integers(0, 4))
    def delete(self, name: str, crash: int | None) -> None:
        after = self.copy()
        if after.pop(name, None) is None:
            with pytest.raises(ModelNotFound):
                self.registry.delete(name)
        else:
            self.change(crash, lambda: self.registry.delete(name), after)

    @rule(text=TEXTS)
    def purge(self, text: str) -> None:
        self.registry.purge(digest_of(text))

    @rule()
    def restart(self) -> None:
        self.start()

    @invariant()
    def every_name_means_what_was_acknowledged(self) -> None:
        assert self.seen() == self.shown(self.model)
        for version in self.registry.versions():
            assert digest_of(version.path.read_text().removeprefix("good ")) == version.digest


RegistryMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
test_the_registry_keeps_its_word_in_any_order = RegistryMachine.TestCase
