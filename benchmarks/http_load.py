"""The cheapest closed loop over HTTP that still reads every byte: what it costs is not the server.

Owns: connections, request bytes, where an answer ends, and its own processor time. Does not know
JSON answers, latencies or models (`tsugiki bench` measures those). One thread on epoll; run it as a
process of its own.

    python -m benchmarks.http_load http://127.0.0.1:8000 --model NAME --concurrency 16 --stream
"""

import argparse
import json
import random
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlsplit

VOCABULARY = (100, 40000)  # random ordinary tokens
RECEIVE_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked: every slot sends `rounds` requests, one after the other."""

    model: str
    concurrency: int = 16
    rounds: int = 4
    prompt: int = 128  # token ids
    new: int = 64  # tokens
    stream: bool = False
    seed: int = 0  # of the prompts

    @property
    def tokens(self) -> int:
        """Generated tokens of the whole load."""
        return self.concurrency * self.rounds * self.new

    def prompts(self) -> Iterator[list[int]]:
        """Random prompts: the same ones for the same seed."""
        draw = random.Random(self.seed)
        while True:
            yield [draw.randrange(*VOCABULARY) for _ in range(self.prompt)]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load took."""

    tokens: int
    seconds: float
    client_seconds: float  # processor time of the client
    bytes: int

    @property
    def speed(self) -> float:
        """Generated tokens a second."""
        return self.tokens / self.seconds


@dataclass(slots=True)
class Slot:
    """One connection and the requests that it will send."""

    connection: socket.socket
    requests: list[bytes]
    end: bytes  # what ends an answer; b"": its Content-Length does
    received: bytearray = field(default_factory=bytearray)
    bytes: int = 0

    def send(self) -> bool:
        """The next request; False when there is none."""
        self.received.clear()
        if not self.requests:
            return False
        self.connection.sendall(self.requests.pop())
        return True

    def read(self) -> bool:
        """What has arrived; True when it ends the answer.

        Raises:
            RuntimeError: the server refused, or closed the connection.
        """
        data = self.connection.recv(RECEIVE_BYTES)
        self.bytes += len(data)
        self.received += data
        if not data or not self.received.startswith(b"HTTP/1.1 200"[: len(self.received)]):
            raise RuntimeError(f"not an answer: {bytes(self.received[:500])!r}")
        if self.end:
            if ended := self.received.endswith(self.end):
                return ended
            del self.received[12 : -len(self.end)]
            return False
        head, separator, body = self.received.partition(b"\r\n\r\n")
        return bool(separator) and len(body) == _content_length(bytes(head))


def run(url: str, load: Load) -> Outcome:
    """Send the load and read all answers."""
    slots = _slots(url, load)
    poll = select.epoll()
    by_number = {slot.connection.fileno(): slot for slot in slots}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    begin, cpu = time.perf_counter(), time.process_time()
    busy = sum(slot.send() for slot in slots)
    while busy:
        for number, _ in poll.poll():
            slot = by_number[number]
            if slot.read() and not slot.send():
                poll.unregister(number)  # the server may close it while others go on
                busy -= 1
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    poll.close()
    for slot in slots:
        slot.connection.close()
    return Outcome(load.tokens, seconds, cpu, sum(slot.bytes for slot in slots))


def _slots(url: str, load: Load) -> list[Slot]:
    address, prompts = urlsplit(url), load.prompts()
    slots = []
    for _ in range(load.concurrency):
        connection = socket.create_connection((address.hostname, address.port), timeout=600)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        requests = [_request(address.netloc, load, next(prompts)) for _ in range(load.rounds)]
        slots.append(Slot(connection, requests, b"0\r\n\r\n" if load.stream else b""))
    return slots


def _request(host: str, load: Load, prompt: list[int]) -> bytes:
    body: dict[str, Any] = {
        "model": load.model, "prompt": prompt, "max_tokens": load.new, "temperature": 0,
        "ignore_eos": True, "stream": load.stream,
    }  # fmt: skip
    content = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise RuntimeError(f"an answer without Content-Length: {head!r}")


def main() -> int:
    """Entry point; prints the outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    for name in ("concurrency", "rounds", "prompt", "new", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Load("x"), name))
    parser.add_argument("--stream", action="store_true")
    args = vars(parser.parse_args())
    print(json.dumps(asdict(run(args.pop("url"), Load(**args)))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
