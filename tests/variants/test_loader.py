"""The background loader: one outcome for every digest, whatever happens on its threads."""

import threading
from pathlib import Path

import pytest

from tests.variants.stepped_source import resident
from tests.variants.tiny_variant import write_variant
from tsugiki.codecs.artifact import read
from tsugiki.errors import CorruptArtifact
from tsugiki.variants.loader import (
    BackgroundLoader,
    Load,
    Loaded,
    LoadOutcome,
    LoadTimings,
    PackedVariant,
    load_files,
    read_packed,
)
from tsugiki.variants.residency import Residency


class Waking:
    """Collects outcomes as an engine does: woken by the loader, never by the clock."""

    def __init__(self, load: Load, threads: int = 1) -> None:
        self.bell = threading.Semaphore(0)
        self.loader = BackgroundLoader(load, threads=threads, on_finished=self.bell.release)

    def outcomes(self, count: int) -> list[LoadOutcome]:
        for _ in range(count):
            assert self.bell.acquire(timeout=30), "the loader never answered"
        return self.loader.finished()


def load_small(digest: str, packed: PackedVariant | None) -> Loaded:
    return Loaded(resident(digest, 10), LoadTimings(1.0, 2.0, 3.0))


def test_every_submitted_digest_comes_back_once() -> None:
    waking = Waking(load_small, threads=2)
    for i in range(20):
        waking.loader.submit(f"d{i}")
    outcomes = waking.outcomes(20)
    waking.loader.close()
    assert sorted(o.digest for o in outcomes) == sorted(f"d{i}" for i in range(20))
    assert all(o.variant is not None and o.timings.stage == 3.0 for o in outcomes)
    assert waking.loader.finished() == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CorruptArtifact("flipped byte"), "flipped byte"),
        (FileNotFoundError("gone"), "FileNotFoundError: gone"),
        (MemoryError(), "MemoryError: "),
    ],
)
def test_an_error_becomes_the_reason_and_the_thread_lives_on(error: Exception, reason: str) -> None:
    def load(digest: str, packed: PackedVariant | None) -> Loaded:
        if digest == "bad":
            raise error
        return load_small(digest, packed)

    waking = Waking(load)
    waking.loader.submit("bad")
    waking.loader.submit("good")
    bad, good = waking.outcomes(2)
    waking.loader.close()
    assert (bad.variant, bad.error) == (None, reason)
    assert good.variant is not None


def test_closing_ends_the_threads_and_forgets_what_was_not_begun() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def load(digest: str, packed: PackedVariant | None) -> Loaded:
        begun.set()
        assert go_on.wait(30)
        return load_small(digest, packed)

    loader = BackgroundLoader(load)
    loader.submit("first")
    loader.submit("second")
    assert begun.wait(30)
    closing = threading.Thread(target=loader.close)
    closing.start()
    go_on.set()
    closing.join(30)
    assert not closing.is_alive()
    assert [o.digest for o in loader.finished()][:1] == ["first"]


def test_a_residency_over_the_loader_delivers_and_reports_failures() -> None:
    def load(digest: str, packed: PackedVariant | None) -> Loaded:
        if digest == "bad":
            raise CorruptArtifact("flipped byte")
        return load_small(digest, packed)

    waking = Waking(load)
    residency = Residency(waking.loader, 100)
    residency.request("bad")
    residency.request("good")
    for _ in range(2):
        assert waking.bell.acquire(timeout=30)
    assert {o.digest: o.error for o in residency.poll()} == {"bad": "flipped byte", "good": None}
    assert residency.snapshot()["bad"].state == "failed"
    assert residency.get("good") is not None
    waking.loader.close()


def test_no_thread_is_left_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    BackgroundLoader(load_small, threads=2).close()
    assert set(threading.enumerate()) <= before


def test_packed_content_is_staged_without_touching_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    digest = write_variant(path)
    load = load_files(lambda digest: path, lambda content: resident(content.header.digest, 10))
    first = load(digest, None)
    assert first.packed is not None
    assert min(first.timings.read, first.timings.verify, first.timings.stage) > 0
    path.unlink()
    again = load(digest, first.packed)
    assert again.variant.digest == digest
    assert (again.timings.read, again.timings.verify) == (0.0, 0.0)
    assert again.packed is first.packed


def test_a_load_offers_to_pause_before_it_reads_and_between_the_reads(tmp_path: Path) -> None:
    path, pauses = tmp_path / "a.safetensors", []
    digest = write_variant(path)
    read_packed(path, digest, pause=lambda: pauses.append(1))
    content = read(path)
    reads_of_the_header, reads_of_tensors = 2, len(content.header.tensors)
    assert len(pauses) == reads_of_the_header + reads_of_tensors
