"""Requests, a scripted model and engines around it: everything but weights is real."""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from tsugiki.codecs.base import Layout, ResidentVariant
from tsugiki.codecs.metadata import BaseRef, Header
from tsugiki.engine.admission import Admission, FinishRate
from tsugiki.engine.client import Machine
from tsugiki.engine.core import EngineCore
from tsugiki.engine.kv_blocks import BlockManager
from tsugiki.engine.local import LocalEngine
from tsugiki.engine.model_runner import ChunkResult
from tsugiki.engine.open_requests import OpenRequests
from tsugiki.engine.request import Request, SamplingParams, VariantRef
from tsugiki.engine.schedule import Chunk, Limits
from tsugiki.engine.scheduler import Scheduler
from tsugiki.engine.thread import Commands, EngineThread, wake
from tsugiki.engine.variant_events import VariantEvents
from tsugiki.engine.variant_info import ModelInfo
from tsugiki.engine.variant_memory import VariantMemory
from tsugiki.engine.variant_service import VariantService
from tsugiki.engine.variant_view import VariantView, names_of
from tsugiki.text.huggingface import load_text_side
from tsugiki.variants.loader import BackgroundLoader, Loaded, LoadOutcome, PackedVariant
from tsugiki.variants.registry import Registry
from tsugiki.variants.residency import Residency
from tsugiki.variants.version import BaseIdentity

PATIENCE = 20.0  # seconds until a test that waits for the engine fails


class ScriptedRunner:
    """A model without weights: the next token is a function of all tokens so far, read back from a
    cache that is addressed through the block tables, so that a wrong block gives a wrong token.
    What another variant wrote is not read."""

    def __init__(self, block_size: int) -> None:
        self.raising: set[str] = set()  # digests, or ids of requests of the base
        self.not_finite: set[str] = set()
        self.wrong: set[str] = set()  # digests whose tokens are off by one
        self.batches: list[list[str]] = []
        self.forgotten = 0
        self.gate = threading.Event()  # closed: steps wait
        self.gate.set()
        self.crash = False
        self._block_size = block_size
        self._cache: dict[int, tuple[str | None, int]] = {}  # who wrote which token

    def run(
        self, chunks: Sequence[Chunk], variants: Mapping[str, ResidentVariant]
    ) -> list[ChunkResult]:
        assert self.gate.wait(PATIENCE)
        if self.crash:
            raise SystemExit("the machine is gone")
        owners = {c.request.variant.digest or c.request.request_id for c in chunks}
        assert {c.request.variant.digest for c in chunks} - {None} == variants.keys()
        if bad := owners & self.raising:
            raise RuntimeError(f"no kernel for {', '.join(sorted(bad))}")
        self.batches.append([chunk.request.request_id for chunk in chunks])
        return [self._result(chunk) for chunk in chunks]

    def forget(self) -> None:
        self.forgotten += 1

    def _result(self, chunk: Chunk) -> ChunkResult:
        request, stop = chunk.request, chunk.start + chunk.num_tokens
        for position, token in enumerate(request.tokens(chunk.start, stop), chunk.start):
            self._cache[self._slot(request, position)] = (request.variant.digest, token)
        if not chunk.completes:
            return ChunkResult()
        if (request.variant.digest or request.request_id) in self.not_finite:
            return ChunkResult(finite=False)
        cached = [self._cache[self._slot(request, p)] for p in range(stop)]
        assert {writer for writer, _ in cached} == {request.variant.digest}
        known = [token for _, token in cached]
        token = next_token(known, request.variant.digest)
        return ChunkResult(token_ids=(token + (request.variant.digest in self.wrong),))

    def _slot(self, request: Request, position: int) -> int:
        block = request.block_table[position // self._block_size]
        return block * self._block_size + position % self._block_size


def next_token(known: Sequence[int], digest: str | None) -> int:
    """What the scripted model says after these tokens."""
    return 5 + (sum(known) * 31 + len(known) * 7 + len(digest or "")) % 250


class InstantSource:
    """Loads at once, or when told to; digests in `broken` fail."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.held = False
        self._wanted: list[str] = []

    def submit(self, digest: str, packed: PackedVariant | None) -> None:
        self._wanted.append(digest)

    def finished(self) -> list[LoadOutcome]:
        if self.held:
            return []
        done, self._wanted = self._wanted, []
        return [
            LoadOutcome(d, None, "bad bytes") if d in self.broken else LoadOutcome(d, resident(d))
            for d in done
        ]


def resident(digest: str) -> ResidentVariant:
    """A variant that changes nothing, of 10 bytes."""
    return ResidentVariant(digest, 512, {}, {}, None, None, 10)


@pytest.fixture
def make_request() -> Callable[..., Request]:
    """`make(prompt=3, digest=None, tenant="", output=(), **sampling)`; greedy unless said."""
    numbers = count()

    def make(
        prompt: int | Iterable[int] = 3,
        *,
        digest: str | None = None,
        tenant: str = "",
        output: Iterable[int] = (),
        **sampling: Any,
    ) -> Request:
        number = next(numbers)
        ids = range(10, 10 + prompt) if isinstance(prompt, int) else prompt
        params = SamplingParams(**({"temperature": 0.0} | sampling))
        return Request(
            request_id=f"r{number}",
            variant=VariantRef(digest or "base", digest),
            prompt_token_ids=tuple(ids),
            params=params,
            tenant=tenant,
            arrival=float(number),
            output_token_ids=list(output),
            seed=params.seed or 0,
        )

    return make


@pytest.fixture
def make_core() -> Callable[..., EngineCore]:
    """`make(blocks=64, block_size=4, seqs=8, tokens=32, budget=1000)`; its runner is scripted."""

    def make(
        *,
        blocks: int = 64,
        block_size: int = 4,
        seqs: int = 8,
        tokens: int = 32,
        budget: int = 1000,
    ) -> EngineCore:
        limits = Limits(seqs, tokens, max_model_len=blocks * block_size)
        scheduler = Scheduler(BlockManager(blocks, block_size), limits)
        residency = Residency(InstantSource(), budget)
        return EngineCore(scheduler, ScriptedRunner(block_size), residency)

    return make


@pytest.fixture
def make_engine(tmp_path: Path, tiny_base: Path) -> Callable[..., LocalEngine]:
    """`make(blocks=64, seqs=8, tokens=32, queue=100, variants=("one",))`: an engine not started,
    over a scripted runner, real threads, a real registry of files that hold their own name."""

    def make(
        *,
        blocks: int = 256,
        seqs: int = 8,
        tokens: int = 32,
        queue: int = 100,
        variants: Sequence[str] = ("one", "two"),
    ) -> LocalEngine:
        root = tmp_path / "variants"
        root.mkdir(exist_ok=True)
        for name in variants:
            (root / f"{name}.safetensors").write_text(name)
        identity = BaseIdentity("sha256:0", Layout({}, {}, {}, "embed", (1, 1), True), 1)
        registry = Registry(root, identity, verify=header_of, reserved=["base"])
        commands: Commands = SimpleQueue()
        loader = BackgroundLoader(
            lambda digest, packed: Loaded(resident(digest)),
            on_finished=lambda: commands.put(wake),
        )
        events = VariantEvents(partial(names_of, registry))
        residency = Residency(loader, 1000, on_transition=events.transition)
        limits = Limits(seqs, tokens, max_model_len=blocks * 4)
        scheduler = Scheduler(BlockManager(blocks, 4), limits)
        core = EngineCore(scheduler, ScriptedRunner(4), residency)
        thread = EngineThread(core, commands)
        base = ModelInfo("base", None, None, None, 1, "ready", 0, limits.max_model_len)
        text = load_text_side(tiny_base)
        view = VariantView(base, text, registry, residency, OpenRequests())
        service = VariantService(view, VariantMemory(thread, view.open_requests), events)
        admission = Admission(limits.max_model_len, seqs + queue, FinishRate())
        machine = Machine("scripted", "cpu", "float32", 1)
        return LocalEngine(core, thread, service, admission, loader, machine)

    return make


def header_of(path: Path) -> Header:
    """A header whose digest is made of the file's text, at most 32 characters: a name, and maybe
    its probe, as in "one|10,11>12"."""
    text = path.read_text()
    prompt, _, greedy = text.partition("|")[2].partition(">")
    ids = {"prompt_ids": prompt, "greedy_ids": greedy}
    return Header(
        codec="deltadq",
        role="delta",
        options={},
        base=BaseRef("base", "LlamaForCausalLM", "sha256:0"),
        modules={},
        text=None,
        probe={k: [int(i) for i in v.split(",")] for k, v in ids.items()} if greedy else None,
        created_by="test",
        provenance={},
        report={},
        digest="sha256:" + text.encode().hex().ljust(64, "0"),
        file_bytes=len(text),
        header_bytes=8,
        padding=0,
        tensors=(),
    )
