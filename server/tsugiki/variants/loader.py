"""The background loader: bytes on disk -> verified -> staged, off the engine thread.

Owns the loader threads and the shape of their answers. Every digest that is submitted comes back as
exactly one `LoadOutcome`; nothing is ever raised into the engine.
Does not know budgets or references (residency.py), nor names (registry.py).
"""

import io
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tsugiki.codecs import artifact
from tsugiki.codecs.base import ResidentVariant
from tsugiki.errors import CorruptArtifact, TsugikiError
from tsugiki.variants.arena import page_rounded
from tsugiki_kernels.interface import Allocate, empty_extent

logger = logging.getLogger(__name__)

PARSED = 10  # bytes of Python objects for each byte of a header's text, measured


@dataclass(frozen=True, slots=True)
class LoadTimings:
    """Milliseconds of each part of one load."""

    read: float = 0.0  # bytes from the file
    verify: float = 0.0  # the header, the digest over those very bytes, every value
    stage: float = 0.0  # into the form that the kernels read


@dataclass(frozen=True, slots=True)
class PackedVariant:
    """The verified content of a file in host memory: it can be staged without reading again."""

    content: artifact.Artifact
    nbytes: int
    shared: tuple[()] = ()


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    """How one load ended: a variant, or the reason why there is none."""

    digest: str
    variant: ResidentVariant | None
    error: str | None = None
    load_ms: float = 0.0
    timings: LoadTimings = LoadTimings()
    packed: PackedVariant | None = None  # what was read, for the host tier


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load that succeeded gives."""

    variant: ResidentVariant
    timings: LoadTimings = LoadTimings()
    packed: PackedVariant | None = None


Load = Callable[[str, PackedVariant | None], Loaded]
_Job = tuple[str, PackedVariant | None]


def load_files(
    path_of: Callable[[str], Path],
    stage: Callable[[artifact.Artifact], ResidentVariant],
    allocate: Allocate = empty_extent,
    pause: Callable[[], None] = lambda: None,
) -> Load:
    """The load of a server: the file of a digest (Registry.path), read, verified and staged.

    `allocate` gives the memory of packed content; `pause` is called before each read of the file.
    The returned function raises:
        CorruptArtifact, InvalidArtifact: the file changed since the registry checked it.
        ModelNotFound: the digest was deleted and purged meanwhile.
    """

    def load(digest: str, packed: PackedVariant | None) -> Loaded:
        timings = LoadTimings()
        if packed is None:
            packed, timings = read_packed(path_of(digest), digest, allocate, pause)
        begin = time.perf_counter()
        variant = stage(packed.content)
        return Loaded(variant, replace(timings, stage=_ms_since(begin)), packed)

    return load


def read_packed(
    path: Path,
    digest: str,
    allocate: Allocate = empty_extent,
    pause: Callable[[], None] = lambda: None,
) -> tuple[PackedVariant, LoadTimings]:
    """The verified content of a file, which must still be the one with this digest.

    Raises:
        CorruptArtifact, InvalidArtifact: it is not, or not a variant at all.
    """
    begin = time.perf_counter()
    with _TimedFile(path, pause) as file:
        content = artifact.read_from(file, allocate)
    if content.header.digest != digest:
        raise CorruptArtifact(
            f"the file of {digest} now holds {content.header.digest}; upload it again"
        )
    header = content.header
    nbytes = page_rounded(header.file_bytes - header.header_bytes)
    packed = PackedVariant(content, nbytes + PARSED * header.header_bytes)
    return packed, LoadTimings(file.read_ms, _ms_since(begin) - file.read_ms)


class _TimedFile(io.FileIO):
    """A file that knows how long reading from it took, and pauses before each read."""

    def __init__(self, path: Path, pause: Callable[[], None]) -> None:
        super().__init__(path)
        self.read_ms = 0.0
        self._pause = pause

    def readinto(self, buffer: Any, /) -> int:
        self._pause()
        begin = time.perf_counter()
        count = super().readinto(buffer) or 0
        self.read_ms += _ms_since(begin)
        return count

    def read(self, size: int | None = -1, /) -> bytes:
        self._pause()
        begin = time.perf_counter()
        found = super().read(size) or b""
        self.read_ms += _ms_since(begin)
        return found


class BackgroundLoader:
    """A `residency.LoadSource` over daemon threads. `load` runs on them; `on_finished` is called
    from them after each load, to wake an engine that has nothing else to do."""

    def __init__(
        self, load: Load, *, threads: int = 1, on_finished: Callable[[], None] = lambda: None
    ) -> None:
        self._load = load
        self._on_finished = on_finished
        self._wanted: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[LoadOutcome] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, name=f"tsugiki-loader-{i}", daemon=True)
            for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, digest: str, packed: PackedVariant | None = None) -> None:
        """Load this digest in the background; from its packed content nothing is read again."""
        self._wanted.put((digest, packed))

    def finished(self) -> list[LoadOutcome]:
        """The loads that ended since the last call."""
        outcomes = []
        while not self._done.empty():
            outcomes.append(self._done.get())
        return outcomes

    def close(self) -> None:
        """Finish the load in progress, forget the rest, end the threads."""
        self._closing.set()
        for _ in self._threads:
            self._wanted.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (job := self._wanted.get()) is not None and not self._closing.is_set():
            self._done.put(self._attempt(*job))
            del job  # else its content would live until the next one
            self._on_finished()

    def _attempt(self, digest: str, packed: PackedVariant | None) -> LoadOutcome:
        begin = time.perf_counter()
        try:
            loaded = self._load(digest, packed)
        except Exception as error:  # whatever it is, it belongs to this variant alone
            expected = isinstance(error, TsugikiError)
            logger.warning("variant %s cannot be loaded: %s", digest, error, exc_info=not expected)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            return LoadOutcome(digest, None, reason, _ms_since(begin))
        return LoadOutcome(
            digest, loaded.variant, None, _ms_since(begin), loaded.timings, loaded.packed
        )


def _ms_since(begin: float) -> float:
    return (time.perf_counter() - begin) * 1000
