"""The churn task: makes the planned calls at their time, one after the other, and books them.

Owns: the HTTP side of an operation and whether its answer is the expected one. Does not know
requests of clients.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.churn.ledger import Ledger, Name
from benchmarks.churn.plan import Kind, Operation
from benchmarks.churn.traffic import Clock

ROUTES: dict[Kind, tuple[str, str]] = {
    "put": ("PUT", ""),
    "put-inactive": ("PUT", "?activate=false"),
    "put-broken": ("PUT", ""),
    "put-abandoned": ("PUT", ""),
    "delete": ("DELETE", ""),
    "delete-version": ("DELETE", "?digest="),
    "rollback": ("POST", "/rollback"),
    "activate": ("POST", "/activate"),
    "canary": ("POST", "/canary"),
}
CHUNK = 64 * 1024


@dataclass(slots=True)
class Report:
    """What the churn task did."""

    done: dict[str, int] = field(default_factory=dict)  # calls by kind
    seconds: dict[str, list[float]] = field(default_factory=dict)  # how long they took, by kind
    surprises: list[str] = field(default_factory=list)  # answers that were not the expected ones


class Churn:
    """Makes operations on one server."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        folder: Path,
        digests: Mapping[str, str],
        ledger: Ledger,
        clock: Clock,
    ) -> None:
        """`folder` holds the variant files, `digests` says what is in them, by stem."""
        self._http = http
        self._folder = folder
        self._digests = digests
        self._ledger = ledger
        self._clock = clock
        self.report = Report()

    async def run(self, operations: Sequence[Operation]) -> None:
        """Make each call at its time, or as soon as the one before has been answered."""
        for operation in operations:
            await asyncio.sleep(max(0.0, operation.at - self._clock()))
            await self._make(operation)

    async def _make(self, operation: Operation) -> None:
        digest = self._digests.get(operation.file or "")
        begin = self._clock()
        try:
            response = await self._send(operation, digest)
        except httpx.HTTPError as error:
            if operation.kind != "put-abandoned":
                self._surprise(operation, f"{type(error).__name__}: {error}")
        except _Abandoned:
            pass
        else:
            expected = self._ledger.expected(operation, digest)
            if problem := _problem(operation, response, expected):
                self._surprise(operation, problem)
        # Booked as expected even after a surprise: what clients are then told shows as wrong, too.
        end = self._clock()
        self._ledger.book(operation, digest, begin, end)
        self.report.done[operation.kind] = self.report.done.get(operation.kind, 0) + 1
        self.report.seconds.setdefault(operation.kind, []).append(end - begin)

    async def _send(self, operation: Operation, digest: str | None) -> httpx.Response:
        method, suffix = ROUTES[operation.kind]
        url = f"/v1/variants/{operation.name}{suffix}"
        if operation.kind == "delete-version":
            return await self._http.delete(url + str(digest))
        if method == "PUT":
            content = (self._folder / f"{operation.file}.safetensors").read_bytes()
            return await self._http.put(url, content=_body(operation.kind, content))
        if operation.kind == "activate":
            return await self._http.post(url, json={"digest": digest})
        if operation.kind == "canary":
            body = {"digest": digest, "percent": operation.percent}
            return await self._http.post(url, json=body)
        return await self._http.request(method, url)

    def _surprise(self, operation: Operation, problem: str) -> None:
        self.report.surprises.append(f"{operation}: {problem}")


class _Abandoned(Exception):
    """The uploader closes its connection."""


async def _body(kind: Kind, content: bytes) -> AsyncIterator[bytes]:
    """The file in chunks: whole, with a byte flipped, or only half of it and then nothing."""
    if kind == "put-broken":
        at = len(content) * 3 // 4
        content = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    end = len(content) // 2 if kind == "put-abandoned" else len(content)
    for start in range(0, end, CHUNK):
        yield content[start : min(end, start + CHUNK)]
    if kind == "put-abandoned":
        raise _Abandoned


def _problem(operation: Operation, response: httpx.Response, expected: Name) -> str | None:
    """What is wrong with the answer to an operation."""
    status, content = response.status_code, response.text[:300]
    if operation.kind == "put-broken":
        return None if status == 422 else f"a damaged file was answered by {status} {content}"
    if status not in (200, 201):
        return f"{status} {content}"
    if operation.kind in ("delete", "delete-version", "put-inactive"):
        return None
    active = expected.activations[-1]
    told = json.loads(response.text)["digest"]
    if operation.kind == "canary" or told == active:
        return None
    return f"the active version should be {active}, the answer says {told}"
