"""The registry as a state machine: changes in any order, each perhaps cut off at any step."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.variants.text_files import digest_of, open_registry, place, upload
from tsugiki.errors import Conflict, ModelNotFound


class Crash(BaseException):
    """Stands for the end of the process; nothing catches it."""


NAMES = st.sampled_from(["a", "b"])
TEXTS = st.sampled_from(["one", "two", "three"])
CRASH = st.none() | st.integers(0, 5)
PERCENT = st.sampled_from([0.0, 10.0, 100.0])


@dataclass(frozen=True)
class Name:
    """What the model knows of a name."""

    stack: tuple[str, ...] = ()
    uploaded: frozenset[str] = frozenset()
    from_file: frozenset[str] = frozenset()
    canary: tuple[str, float] | None = None
    file: str | None = None  # what the operator's file holds

    @property
    def digests(self) -> frozenset[str]:
        return self.uploaded | self.from_file

    def activated(self, digest: str) -> "Name":
        stack = self.stack if self.stack[-1:] == (digest,) else (*self.stack, digest)
        return replace(self, stack=stack, canary=None)

    def without(self, digest: str) -> "Name":
        kept = [d for d in self.stack if d != digest]
        stack = tuple(d for i, d in enumerate(kept) if i == 0 or kept[i - 1] != d)
        was_active = self.stack[-1:] == (digest,)
        canary = None if was_active or (self.canary or ("",))[0] == digest else self.canary
        return replace(
            self,
            stack=() if was_active else stack,
            uploaded=self.uploaded - {digest},
            from_file=self.from_file - {digest},
            canary=canary,
            file=None if self.file == digest else self.file,
        )


@dataclass
class Model:
    """Every name that has a version."""

    names: dict[str, Name] = field(default_factory=dict)

    def but(self, name: str, state: Name) -> "Model":
        others = {n: s for n, s in self.names.items() if n != name}
        return Model(others | ({name: state} if state.digests else {}))

    def shown(self) -> dict[str, object]:
        return {
            n: (s.stack[-1] if s.stack else None, s.digests, s.canary)
            for n, s in self.names.items()
        }


class RegistryMachine(RuleBasedStateMachine):
    """Changes in any order, each perhaps cut off at any step, with restarts between them."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.root = Path(self.directory.name)
        self.crash_after: int | None = None
        self.model = Model()
        self.times = count(1)
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
            if self.seen() == after.shown():
                self.model = after
        self.crash_after = None

    def seen(self) -> dict[str, object]:
        assert [v for v in self.registry.versions() if v.error] == []
        return {name: self.seen_of(name) for name in {v.name for v in self.registry.versions()}}

    def seen_of(self, name: str) -> object:
        versions = [v for v in self.registry.versions() if v.name == name]
        active = next((v.digest for v in versions if v.active), None)
        canary = next(((v.digest, v.canary_percent) for v in versions if v.canary_percent), None)
        return active, frozenset(v.digest for v in versions), canary

    def state(self, name: str) -> Name:
        return self.model.names.get(name, Name())

    @rule(name=NAMES, text=TEXTS, activate=st.booleans(), crash=CRASH)
    def put(self, name: str, text: str, activate: bool, crash: int | None) -> None:
        digest = digest_of(text)
        state = self.state(name)
        state = replace(
            state, uploaded=state.uploaded | {digest}, from_file=state.from_file - {digest}
        )
        after = self.model.but(name, state.activated(digest) if activate else state)
        path = upload(self.registry, text)
        self.change(crash, lambda: self.registry.put(name, path, activate), after)

    @rule(name=NAMES, text=TEXTS, crash=CRASH)
    def activate(self, name: str, text: str, crash: int | None) -> None:
        digest = digest_of(text)
        if digest not in self.state(name).digests:
            with pytest.raises(ModelNotFound):
                self.registry.activate(name, digest)
            return
        after = self.model.but(name, self.state(name).activated(digest))
        self.change(crash, lambda: self.registry.activate(name, digest), after)

    @rule(name=NAMES, text=TEXTS, percent=PERCENT, crash=CRASH)
    def canary(self, name: str, text: str, percent: float, crash: int | None) -> None:
        state, digest = self.state(name), digest_of(text)
        running = state.canary is not None and state.canary[0] == digest
        if digest not in state.digests:
            with pytest.raises(ModelNotFound):
                self.registry.canary(name, digest, percent)
        elif percent == 0 and not running:
            self.registry.canary(name, digest, percent)
        elif state.stack[-1:] in ((), (digest,)):
            with pytest.raises(Conflict):
                self.registry.canary(name, digest, percent)
        else:
            canary = (digest, percent) if percent else None
            after = self.model.but(name, replace(state, canary=canary))
            self.change(crash, lambda: self.registry.canary(name, digest, percent), after)

    @rule(name=NAMES, crash=CRASH)
    def rollback(self, name: str, crash: int | None) -> None:
        state = self.state(name)
        if not state.digests:
            with pytest.raises(ModelNotFound):
                self.registry.rollback(name)
        elif state.canary is None and len(state.stack) < 2:
            with pytest.raises(Conflict):
                self.registry.rollback(name)
        else:
            stack = state.stack if state.canary else state.stack[:-1]
            after = self.model.but(name, replace(state, stack=stack, canary=None))
            self.change(crash, lambda: self.registry.rollback(name), after)

    @rule(name=NAMES, text=TEXTS, crash=CRASH)
    def delete_version(self, name: str, text: str, crash: int | None) -> None:
        state, digest = self.state(name), digest_of(text)
        if digest not in state.digests:
            with pytest.raises(ModelNotFound):
                self.registry.delete_version(name, digest)
        elif state.stack[-1:] == (digest,):
            with pytest.raises(Conflict):
                self.registry.delete_version(name, digest)
        else:
            after = self.model.but(name, state.without(digest))
            self.change(crash, lambda: self.registry.delete_version(name, digest), after)

    @rule(name=NAMES, crash=CRASH)
    def delete(self, name: str, crash: int | None) -> None:
        if name not in self.model.names:
            with pytest.raises(ModelNotFound):
                self.registry.delete(name)
        else:
            after = self.model.but(name, Name())
            self.change(crash, lambda: self.registry.delete(name), after)

    @rule(name=NAMES, text=TEXTS, crash=CRASH)
    def place(self, name: str, text: str, crash: int | None) -> None:
        """The operator writes a file, or writes over it; it counts also when a look is cut off."""
        digest = digest_of(text)
        state = self.state(name)
        if digest not in state.uploaded:
            state = replace(state, from_file=state.from_file | {digest})
        after = state if state.file == digest else state.activated(digest)
        place(self.root, name, text)
        moment = next(self.times)
        os.utime(self.root / f"{name}.safetensors", (moment, moment))
        self.change(crash, self.look, self.model.but(name, replace(after, file=digest)))
        self.model = self.model.but(name, replace(after, file=digest))

    @rule(name=NAMES, crash=CRASH)
    def unplace(self, name: str, crash: int | None) -> None:
        state = self.state(name)
        if state.file is None:
            return
        (self.root / f"{name}.safetensors").unlink()
        after = state
        for digest in state.from_file:
            after = after.without(digest)
        after = replace(after, file=None)
        self.change(crash, self.look, self.model.but(name, after))
        self.model = self.model.but(name, after)

    def look(self) -> None:
        self.registry.rescan()
        self.registry.rescan()

    @rule(text=TEXTS)
    def purge(self, text: str) -> None:
        self.registry.purge(digest_of(text))

    @rule()
    def restart(self) -> None:
        self.start()

    @invariant()
    def every_name_means_what_was_acknowledged(self) -> None:
        assert self.seen() == self.model.shown()
        for version in self.registry.versions():
            assert digest_of(version.path.read_text().removeprefix("good ")) == version.digest


RegistryMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
test_the_registry_keeps_its_word_in_any_order = RegistryMachine.TestCase
