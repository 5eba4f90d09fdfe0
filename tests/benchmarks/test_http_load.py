"""The load generator of the HTTP benchmarks, against answers cut anywhere."""

import socket
from collections.abc import Iterator
from itertools import pairwise

import pytest

from benchmarks.http_load import Load, Outcome, Slot

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n" + b"0\r\n\r\nab"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Client and server of one connection."""
    client, server = socket.socketpair()
    with client, server:
        yield client, server


@pytest.mark.parametrize(("answer", "end"), [(WHOLE, b""), (STREAM, b"0\r\n\r\n")])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_answer_ends_where_it_ends_however_it_arrives(
    ends: tuple[socket.socket, socket.socket], answer: bytes, end: bytes, size: int
) -> None:
    client, server = ends
    slot = Slot(client, [], end)
    cuts = [*range(0, len(answer), size), len(answer)]
    ended = []
    for begin, stop in pairwise(cuts):
        server.sendall(answer[begin:stop])
        ended.append(slot.read())
    assert ended == [False] * (len(cuts) - 2) + [True]
    assert slot.bytes == len(answer)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 503 Service Unavailable\r\n\r\n", b""])
def test_a_refusal_and_a_closed_connection_are_errors(
    ends: tuple[socket.socket, socket.socket], answer: bytes
) -> None:
    client, server = ends
    server.sendall(answer)
    server.close()
    with pytest.raises(RuntimeError, match="not an answer"):
        Slot(client, [], b"").read()


def test_a_load_has_the_same_prompts_for_the_same_seed_alone() -> None:
    first, again, other = (next(Load("m", seed=seed).prompts()) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == Load("m").prompt


def test_speed_is_tokens_a_second() -> None:
    assert Outcome(Load("m", 2, 3, new=4).tokens, 2.0, 0.0, 0).speed == 12.0
