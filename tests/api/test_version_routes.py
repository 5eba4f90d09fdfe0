"""Versions over HTTP: activation, canaries, history, deletion, signatures; what refusals leave."""

import json
import logging
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import FakeEngine
from tests.api.test_observability import samples
from tsugiki.api.responses import VariantCard, VariantHistory
from tsugiki.engine.request import VariantRef
from tsugiki.errors import CorruptArtifact, ProbeFailed, TsugikiError, WrongBase

UNKNOWN = "sha256:" + "0" * 64


def test_a_version_is_activated_by_digest_or_twelve_hex(
    client: TestClient, engine: FakeEngine
) -> None:
    digest = engine.versions["tuned"].digest
    for named in (digest, digest[:19]):
        response = client.post("/v1/variants/tuned/activate", json={"digest": named})
        assert (response.status_code, response.json()["digest"]) == (200, digest)
        VariantCard.model_validate(response.json())
    unknown = client.post("/v1/variants/tuned/activate", json={"digest": UNKNOWN})
    nobody = client.post("/v1/variants/nobody/activate", json={"digest": digest})
    assert [unknown.status_code, nobody.status_code] == [404, 404]


def test_a_canary_shows_on_the_card_and_in_the_metrics(
    client: TestClient, engine: FakeEngine
) -> None:
    digest = engine.versions["tuned"].digest
    body = {"digest": digest, "percent": 12.5}
    assert client.post("/v1/variants/tuned/canary", json=body).json()["canary_percent"] == 12.5
    assert client.get("/v1/variants/tuned").json()["canary_percent"] == 12.5
    assert samples(client)["tsugiki_variant_canary_percent", f"{digest},tuned"] == 12.5
    client.post("/v1/variants/tuned/canary", json={**body, "percent": 0})
    assert ("tsugiki_variant_canary_percent", f"{digest},tuned") not in samples(client)


@pytest.mark.parametrize("verb", ["activate", "canary"])
@pytest.mark.parametrize(
    "wrong",
    [
        {"digest": "latest"},
        {"digest": "sha256:abc"},
        {"digest": UNKNOWN.upper()},
        {"digest": None},
        {"percent": 101},
        {"percent": -1},
        {"percent": "many"},
    ],
)
def test_bodies_that_make_no_sense_are_400(
    client: TestClient, verb: str, wrong: dict[str, Any]
) -> None:
    if verb == "activate" and "percent" in wrong:
        wrong = {}
    body = {"digest": UNKNOWN, "percent": 5, **wrong} if wrong else {}
    response = client.post(f"/v1/variants/tuned/{verb}", json=body)
    assert response.status_code == 400


@pytest.mark.parametrize("route", ["completions", "chat/completions"])
def test_the_canary_that_a_user_gets_is_named_in_the_answer(
    client: TestClient, engine: FakeEngine, route: str
) -> None:
    engine.canary_users["anna"] = VariantRef("tuned", UNKNOWN)
    question = {"messages": [{"role": "user", "content": "x"}]} if "chat" in route else {}
    body = {"model": "tuned", "prompt": "x", **question}
    served = {
        user: client.post(f"/v1/{route}", json={**body, "user": user}).headers["x-tsugiki-variant"]
        for user in ("anna", "bert", None)
    }
    active = f"tuned@{engine.versions['tuned'].digest}"
    assert served == {"anna": f"tuned@{UNKNOWN}", "bert": active, None: active}
    assert engine.specs[0].variant.digest == UNKNOWN


def test_history_lists_what_was_done(client: TestClient, engine: FakeEngine) -> None:
    body = client.get("/v1/variants/tuned/history").json()
    VariantHistory.model_validate(body)
    assert body["data"][0]["digest"] == engine.versions["tuned"].digest
    assert body["data"][0]["action"] == "upload"
    assert client.get("/v1/variants/nobody/history").status_code == 404


def test_the_active_version_cannot_be_deleted_alone(client: TestClient, engine: FakeEngine) -> None:
    digest = engine.versions["tuned"].digest

    def delete(digest: str) -> int:
        return client.delete(f"/v1/variants/tuned?digest={digest}").status_code

    assert [delete(digest), delete(UNKNOWN), delete("latest")] == [409, 404, 400]
    assert "tuned" in engine.versions


def test_a_signature_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    client.put("/v1/variants/new", content=b"x", headers={"X-Tsugiki-Signature": "c2ln"})
    client.put("/v1/variants/new", content=b"x")
    assert engine.signatures == ["c2ln", None]


def test_the_name_of_the_event_stream_is_taken(client: TestClient, engine: FakeEngine) -> None:
    response = client.put("/v1/variants/events", content=b"x")
    assert response.status_code == 400
    assert "events" not in engine.versions


REFUSALS = [
    (WrongBase("made for another base"), "wrong_base"),
    (CorruptArtifact("truncated"), "corrupt_variant"),
    (ProbeFailed("token 3 differs"), "probe_failed"),
]


@pytest.mark.parametrize(("error", "code"), REFUSALS)
@pytest.mark.parametrize("resumable", [False, True])
def test_a_refused_upload_leaves_one_json_line_and_a_count(
    make_client: MakeClient,
    engine: FakeEngine,
    caplog: pytest.LogCaptureFixture,
    error: TsugikiError,
    code: str,
    *,
    resumable: bool,
) -> None:
    engine.variant_error = error
    before = dict(engine.versions)
    part = {"X-Upload-Id": "upload-1", "Content-Range": "bytes 0-3/4"} if resumable else {}
    headers = {"X-Request-Id": "this-one", **part}
    with make_client() as client, caplog.at_level(logging.INFO, "tsugiki.refusals"):
        response = client.put("/v1/variants/new", content=b"0123", headers=headers)
        counted = samples(client)["tsugiki_uploads_total", code]
    assert (response.status_code, response.json()["error"]["code"]) == (422, code)
    assert [json.loads(record.message) for record in caplog.records] == [
        {
            "event": "upload refused",
            "id": "this-one",
            "name": "new",
            "bytes": 4,
            "code": code,
            "reason": str(error),
        }
    ]
    assert counted == 1
    assert engine.versions == before


def test_uploads_are_counted_by_how_they_ended(make_client: MakeClient) -> None:
    with make_client(max_upload_bytes=10) as client:
        client.put("/v1/variants/new", content=b"x")
        client.put("/v1/variants/new", content=b"x")
        client.put("/v1/variants/new", content=iter([b"x" * 11]))
        client.put("/v1/variants/new", content=b"y", headers={"If-None-Match": "*"})
        found = samples(client)
    outcomes = ("created", "unchanged", "payload_too_large", "conflict")
    assert [found["tsugiki_uploads_total", outcome] for outcome in outcomes] == [1, 1, 1, 1]
