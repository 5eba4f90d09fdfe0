"""Uploads in several requests, through broken connections and restarts."""

import asyncio
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tests.api.test_uploads import MIB, FullDisk, until, uploads
from tsugiki.api.content_range import parse_content_range
from tsugiki.api.partial_files import PartialFiles
from tsugiki.api.resumable import Chunk, Progress, ResumableUploads
from tsugiki.errors import CorruptArtifact, Unavailable

CONTENT = b"0123456789"
ID = "upload-1"


def put(client: Any, span: str, body: Any = b"", *, upload_id: str = ID, **more: Any) -> Any:
    """A chunk for the variant `new`, or what `more` says."""
    name, headers = more.pop("name", "new"), more.pop("headers", {})
    headers = {"X-Upload-Id": upload_id, "Content-Range": f"bytes {span}", **headers}
    return client.put(f"/v1/variants/{name}", content=body, headers=headers, **more)


def test_chunks_add_up_to_the_file(client: TestClient, engine: FakeEngine, tmp_path: Path) -> None:
    first = put(client, "0-3/10", CONTENT[:4])
    assert (first.status_code, first.headers["range"]) == (308, "bytes=0-3")
    assert first.json() == {"upload_id": ID, "received": 4, "total": 10}
    assert engine.uploaded == b""
    last = put(client, "4-9/10", CONTENT[4:], params={"pin": "true"})
    assert (last.status_code, last.json()["pinned"]) == (201, True)
    assert engine.uploaded == CONTENT
    assert uploads(tmp_path) == []


def test_the_same_content_again_is_200(client: TestClient) -> None:
    assert put(client, "0-9/10", CONTENT).status_code == 201
    assert put(client, "0-9/10", CONTENT).status_code == 200
    assert client.put("/v1/variants/new", content=CONTENT).status_code == 200


def test_asking_says_how_far_an_upload_is(client: TestClient) -> None:
    nothing = put(client, "*/10")
    assert (nothing.status_code, "range" in nothing.headers) == (308, False)
    put(client, "0-3/10", CONTENT[:4])
    assert put(client, "*/10").headers["range"] == "bytes=0-3"


@pytest.mark.parametrize("start", [0, 3, 5])
def test_a_wrong_offset_is_409_and_names_the_right_one(client: TestClient, start: int) -> None:
    put(client, "0-3/10", CONTENT[:4])
    wrong = put(client, f"{start}-9/10", CONTENT[start:])
    assert (wrong.status_code, wrong.headers["range"]) == (409, "bytes=0-3")
    assert wrong.json()["error"]["code"] == "wrong_offset"
    assert "go on at 4" in wrong.json()["error"]["message"]
    assert put(client, "4-9/10", CONTENT[4:]).status_code == 201


def test_an_upload_survives_a_restart(
    make_client: MakeClient, engine: FakeEngine, tmp_path: Path
) -> None:
    with make_client() as client:
        put(client, "0-3/10", CONTENT[:4])
    with make_client() as client:
        assert put(client, "*/10").headers["range"] == "bytes=0-3"
        assert put(client, "4-9/10", CONTENT[4:]).status_code == 201
    assert engine.uploaded == CONTENT
    assert uploads(tmp_path) == []


@pytest.mark.parametrize(
    ("span", "body"),
    [("0-3/10", b"012"), ("0-3/10", b"01234"), ("*/10", b"0")],
    ids=["short", "long", "asking"],
)
def test_a_body_of_another_length_than_said_is_400(
    client: TestClient, span: str, body: bytes
) -> None:
    assert put(client, span, body).status_code == 400
    assert put(client, "*/10").json()["received"] == 0


def test_more_than_was_said_in_chunked_form_is_refused_at_that_byte(client: TestClient) -> None:
    assert put(client, "0-3/10", iter([b"01", b"2345"])).status_code == 400
    assert put(client, "*/10").json()["received"] == 4


@pytest.mark.parametrize(
    "headers",
    [
        {"X-Upload-Id": ID},
        {"Content-Range": "bytes 0-3/10"},
        {"X-Upload-Id": "short", "Content-Range": "bytes 0-3/10"},
        {"X-Upload-Id": "../../../etc", "Content-Range": "bytes 0-3/10"},
        *(
            {"X-Upload-Id": ID, "Content-Range": f"bytes {span}"}
            for span in ("3-1/10", "0-10/10", "0-3/*", "*/0", "-3/10", "0-3", "a-b/c")
        ),
    ],
)
def test_headers_that_make_no_sense_are_400(
    client: TestClient, headers: dict[str, str], tmp_path: Path
) -> None:
    assert client.put("/v1/variants/new", content=b"0123", headers=headers).status_code == 400
    assert not (tmp_path / "uploads").exists() or uploads(tmp_path) == []


def test_an_id_belongs_to_one_name_and_one_size(client: TestClient) -> None:
    put(client, "0-3/10", CONTENT[:4])
    assert put(client, "4-9/10", CONTENT[4:], name="other").status_code == 409
    assert put(client, "4-10/11", CONTENT[4:] + b"x").status_code == 409
    assert put(client, "0-9/10", CONTENT, name="other", upload_id="upload-2").status_code == 201
    assert put(client, "4-9/10", CONTENT[4:]).status_code == 201


def test_a_total_over_the_limit_is_413_before_the_body_is_read(make_client: MakeClient) -> None:
    def body() -> Iterator[bytes]:
        raise AssertionError("it was read")
        yield b""

    with make_client(max_upload_bytes=9) as client:
        over = put(client, "0-3/10", CONTENT[:4])
        assert (over.status_code, over.json()["error"]["code"]) == (413, "payload_too_large")
        assert put(client, "*/10").status_code == 413


def test_unfinished_uploads_are_limited_in_number_and_bytes(make_client: MakeClient) -> None:
    with make_client(max_partial_uploads=2, max_partial_bytes=30) as client:
        codes = [
            put(client, f"0-3/{total}", b"0123", upload_id=f"upload-{i}").status_code
            for i, total in enumerate((10, 21, 20, 5))
        ]
        assert codes == [308, 507, 308, 507]
        assert put(client, "4-9/10", CONTENT[4:], upload_id="upload-0").status_code == 201
        assert put(client, "0-3/5", b"0123", upload_id="upload-3").status_code == 308


def test_uploads_that_rest_make_room_for_new_ones(make_client: MakeClient, tmp_path: Path) -> None:
    with make_client(max_partial_uploads=2) as client:
        for upload_id in ("upload-1", "upload-2"):
            put(client, "0-3/10", CONTENT[:4], upload_id=upload_id)
        an_hour_ago = time.time() - 3600
        for path in uploads(tmp_path):
            if path.name.startswith("upload-1"):
                os.utime(path, (an_hour_ago, an_hour_ago))
        codes = [
            put(client, "0-3/10", CONTENT[:4], upload_id=f"upload-{i}").status_code for i in (3, 4)
        ]
        assert codes == [308, 507]
        assert put(client, "4-9/10", CONTENT[4:], upload_id="upload-2").status_code == 201
        restarted = put(client, "4-9/10", CONTENT[4:], upload_id="upload-1")
        assert (restarted.status_code, "go on at 0" in restarted.text) == (409, True)


def test_an_unfinished_upload_dies_after_a_day(client: TestClient, tmp_path: Path) -> None:
    for upload_id in ("upload-1", "upload-2"):
        put(client, "0-3/10", CONTENT[:4], upload_id=upload_id)
    for path in uploads(tmp_path):
        if path.name.startswith("upload-1"):
            os.utime(path, (0, 0))
    (tmp_path / "uploads" / "orphaned.partial").touch()
    put(client, "0-3/10", CONTENT[:4], upload_id="upload-3")
    assert {path.name.split(".")[0] for path in uploads(tmp_path)} == {"upload-2", "upload-3"}
    assert put(client, "*/10", upload_id="upload-1").json()["received"] == 0
    assert put(client, "*/10", upload_id="upload-2").json()["received"] == 4


def test_a_damaged_record_begins_anew(client: TestClient, tmp_path: Path) -> None:
    put(client, "0-3/10", CONTENT[:4])
    (tmp_path / "uploads" / f"{ID}.partial.json").write_text("{")
    assert put(client, "0-9/10", CONTENT).status_code == 201


def test_a_refused_file_leaves_nothing_and_is_told_again(
    client: TestClient, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.variant_error = CorruptArtifact("truncated")
    assert put(client, "0-9/10", CONTENT).status_code == 422
    assert put(client, "*/10").status_code == 422
    assert uploads(tmp_path) == []
    engine.variant_error = None
    assert put(client, "0-9/10", CONTENT).status_code == 201
    assert put(client, "*/10").status_code == 201


def test_after_a_failure_of_the_moment_an_upload_begins_anew(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.variant_error = Unavailable("the engine is busy")
    assert put(client, "0-9/10", CONTENT).status_code == 503
    engine.variant_error = None
    assert put(client, "*/10").json()["received"] == 0
    assert put(client, "0-9/10", CONTENT).status_code == 201


def test_if_none_match_refuses_chunks_for_an_existing_name(client: TestClient) -> None:
    headers = {"If-None-Match": "*"}
    assert put(client, "0-9/10", CONTENT, name="tuned", headers=headers).status_code == 409
    assert put(client, "0-9/10", CONTENT, headers=headers).status_code == 201
    assert put(client, "*/10", headers=headers).status_code == 201


def size(tmp_path: Path) -> int:
    """Bytes of the upload that are on disk."""
    content = tmp_path / "uploads" / f"{ID}.partial"
    return content.stat().st_size if content.exists() else 0


def half_a_chunk(live: LiveServer, content: bytes, total: int) -> socket.socket:
    """A connection on which the rest of a chunk never comes."""
    connection = socket.create_connection(("127.0.0.1", live.port))
    head = (
        "PUT /v1/variants/new HTTP/1.1\r\nHost: x\r\n"
        f"X-Upload-Id: {ID}\r\nContent-Range: bytes 0-{total - 1}/{total}\r\n"
        f"Content-Length: {total}\r\n\r\n"
    )
    connection.sendall(head.encode() + content)
    return connection


def test_what_arrived_before_the_connection_broke_counts(
    live: LiveServer, engine: FakeEngine, tmp_path: Path
) -> None:
    content = os.urandom(3 * MIB + 7)
    start, total = 2 * MIB + 5, len(content)
    half_a_chunk(live, content[:start], total).close()
    until(lambda: size(tmp_path) == start)
    with httpx.Client(base_url=live.url) as http:
        rest = put(http, f"{start}-{total - 1}/{total}", content[start:])
    assert rest.status_code == 201
    assert engine.uploaded == content


def test_a_connection_that_hangs_is_taken_over(
    live: LiveServer, engine: FakeEngine, tmp_path: Path
) -> None:
    content = os.urandom(3 * MIB)
    total = len(content)
    with half_a_chunk(live, content[: 2 * MIB], total), httpx.Client(base_url=live.url) as http:
        until(lambda: size(tmp_path) >= MIB)
        received = put(http, f"*/{total}").json()["received"]
        rest = put(http, f"{received}-{total - 1}/{total}", content[received:])
    assert MIB <= received <= 2 * MIB
    assert rest.status_code == 201
    assert engine.uploaded == content


def test_a_question_that_an_older_request_overtakes_is_answered_all_the_same(
    tmp_path: Path,
) -> None:
    """The bytes of a connection that broke may be read after the question about them."""

    async def overtaken() -> list[Progress | str]:
        asked = asyncio.Event()

        async def silence() -> AsyncIterator[bytes]:
            asked.set()
            await asyncio.Event().wait()
            yield b""

        async def content() -> AsyncIterator[bytes]:
            yield CONTENT[:4]

        async def finish(whole: Path) -> str:
            return whole.name

        files = PartialFiles(lambda: tmp_path, most=1, most_bytes=MIB)
        uploads = ResumableUploads[str](files, lambda: tmp_path)
        chunks = [
            Chunk(ID, "new", parse_content_range(f"bytes {span}"), body)
            for span, body in [("*/10", silence()), ("0-3/10", content())]
        ]
        question = asyncio.create_task(uploads.take(chunks[0], finish))
        await asked.wait()
        return [await uploads.take(chunks[1], finish), await question]

    older, question = asyncio.run(overtaken())
    assert older == Progress(4, 10)
    assert question in (Progress(0, 10), Progress(4, 10))


def test_a_client_that_missed_the_end_is_told_it(
    live: LiveServer, engine: FakeEngine, tmp_path: Path
) -> None:
    engine.verifying = asyncio.Event()
    with half_a_chunk(live, CONTENT, len(CONTENT)):
        until(lambda: engine.uploaded == CONTENT)
    with httpx.Client(base_url=live.url) as http:
        busy = put(http, "0-9/10", CONTENT)
        assert (busy.status_code, "being verified" in busy.text) == (409, True)
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(put(http, "*/10").status_code))
        asking.start()
        assert live.loop is not None
        live.loop.call_soon_threadsafe(engine.verifying.set)
        asking.join(timeout=10)
    assert answers == [201]
    assert uploads(tmp_path) == []


def test_a_full_disk_keeps_what_fitted(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    total = 3 * MIB
    content = b"x" * total
    put(client, f"0-0/{total}", content[:1])
    with monkeypatch.context() as patch:
        patch.setattr("tsugiki.api.partial_files.PartialFiles.open", _full_disk)
        full = put(client, f"1-{total - 1}/{total}", content[1:])
    assert full.status_code == 507
    received = put(client, f"*/{total}").json()["received"]
    assert 1 <= received < total
    assert put(client, f"{received}-{total - 1}/{total}", content[received:]).status_code == 201


def _full_disk(files: Any, upload_id: str, claim: Any) -> FullDisk:
    return FullDisk(files._content(upload_id), "ab")
