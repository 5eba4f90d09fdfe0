"""Streams of one variant, and loads of another beside them.

Owns: windows of a fixed number of tokens and the gaps between them as a client sees them, and the
loader's own report of every load. Does not know: what is compared with what (cold_start.py).
"""

import asyncio
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import aiohttp

STREAMS, PROMPT = 8, 32
VOCABULARY = (100, 40000)  # random ordinary tokens
EVERY = 1.0  # seconds between the starts of two loads


@dataclass(frozen=True, slots=True)
class Window:
    """One window of decoding."""

    gaps: list[float]  # milliseconds between two tokens of one stream, of all streams
    loads: list[Mapping[str, float]]  # read, verify, stage of every load meanwhile, milliseconds

    @property
    def p99(self) -> float:
        """The gap that one of a hundred exceeds."""
        return sorted(self.gaps)[int(0.99 * len(self.gaps))]


def windows(
    url: str, streamed: str, loaded: str, *, pairs: int, tokens: int
) -> list[tuple[Window, Window]]:
    """Windows without and with loads, in the order A B B A ..., after one of each to warm up."""
    run = _Windows(url, streamed, loaded, tokens)
    run.one(loads=False), run.one(loads=True)
    found: list[tuple[Window, Window]] = []
    for pair in range(pairs):
        first_loads = bool(pair % 2)
        first, second = run.one(loads=first_loads), run.one(loads=not first_loads)
        found.append((second, first) if first_loads else (first, second))
    return found


@dataclass(frozen=True, slots=True)
class _Windows:
    url: str
    streamed: str
    loaded: str
    tokens: int

    def one(self, *, loads: bool) -> Window:
        return asyncio.run(self._one(loads))

    async def _one(self, loads: bool) -> Window:
        timeout = aiohttp.ClientTimeout(total=600)
        spent: list[Mapping[str, float]] = []
        async with aiohttp.ClientSession(self.url, timeout=timeout) as session:
            loading = asyncio.create_task(self._load_again(session, spent)) if loads else None
            gaps = await asyncio.gather(*(self._stream(session, i) for i in range(STREAMS)))
            if loading is not None:
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
        return Window([gap for of_one in gaps for gap in of_one], spent)

    async def _stream(self, session: aiohttp.ClientSession, number: int) -> list[float]:
        """The gaps of one completion, but for those around its first token."""
        draw = random.Random(number)
        body = {
            "model": self.streamed,
            "prompt": [draw.randrange(*VOCABULARY) for _ in range(PROMPT)],
            "max_tokens": self.tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        times = []
        async with session.post("/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.content:
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter() * 1000)
        times = times[STREAMS:]  # the others' prompts are computed meanwhile
        return [b - a for a, b in pairwise(times)]

    async def _load_again(
        self, session: aiohttp.ClientSession, spent: list[Mapping[str, float]]
    ) -> None:
        """Unload and load, one round in EVERY seconds, until cancelled."""
        while True:
            begin = time.perf_counter()
            for operation in ("unload", "load"):
                path = f"/v1/variants/{self.loaded}/{operation}"
                async with session.post(path) as answer:
                    answer.raise_for_status()
                    variant = await answer.json()
            spent.append(variant["timings"])
            await asyncio.sleep(max(0.0, begin + EVERY - time.perf_counter()))
