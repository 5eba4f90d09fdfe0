"""Everything that is not 2xx leaves in OpenAI's shape."""

import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import FakeEngine
from tsugiki.api.responses import ErrorAnswer

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{bad", JSON),
        (b"", JSON),
        (b"[]", JSON),
        (b"null", JSON),
        (b"\xff\xfe", JSON),
        (b"[" * 100_000, JSON),
        (b'{"model": "tuned", "prompt": "x"}', {"content-type": "text/plain"}),
        (b'{"model": "tuned", "prompt": "x", "temperature": NaN}', JSON),
        (b'{"model": "tuned", "prompt": "x", "logit_bias": {"\\ud800": 1}}', JSON),
    ],
)
def test_malformed_bodies_are_400(client: TestClient, body: bytes, headers: dict[str, str]) -> None:
    response = client.post("/v1/completions", content=body, headers=headers)
    assert response.status_code == 400
    ErrorAnswer.model_validate(response.json())


def test_a_name_that_is_no_text_is_refused(client: TestClient) -> None:
    body = b'{"model": "\\ud800", "prompt": "x"}'
    response = client.post("/v1/completions", content=body, headers=JSON)
    assert response.status_code in (400, 404)
    ErrorAnswer.model_validate(response.json())


def test_an_unknown_route_is_404(client: TestClient) -> None:
    response = client.get("/v2/models")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_a_wrong_method_is_405_and_says_which_are_right(client: TestClient) -> None:
    response = client.get("/v1/completions")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["code"] == "method_not_allowed"


def test_a_body_over_the_limit_is_413_by_its_header_or_by_its_bytes(
    make_client: MakeClient,
) -> None:
    body = b'{"model": "tuned", "prompt": "' + b"x" * 2000 + b'"}'
    with make_client(max_body_bytes=1000) as client:
        stated = client.post("/v1/completions", content=body, headers=JSON)
        unstated = client.post("/v1/completions", content=iter([body]), headers=JSON)
    for response in (stated, unstated):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "payload_too_large"


def test_a_draining_server_refuses_work_with_retry_after(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.is_draining = True
    response = client.post("/v1/completions", json={"model": "tuned", "prompt": "x"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert client.get("/ready").status_code == 503
    assert client.get("/health").status_code == 200
    assert client.get("/v1/models").status_code == 200


def test_a_dead_engine_is_unavailable_and_unhealthy(client: TestClient, engine: FakeEngine) -> None:
    engine.is_alive = False
    response = client.post("/v1/completions", json={"model": "tuned", "prompt": "x"})
    assert response.status_code == 503
    assert client.get("/health").status_code == 503
    assert client.get("/ready").status_code == 503


def test_a_bug_in_a_route_is_a_500_with_a_request_id(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "models", lambda: [][0])
    response = client.get("/v1/models", headers={"x-request-id": "r1"})
    assert response.status_code == 500
    assert response.headers["x-request-id"] == "r1"
    assert response.json()["error"]["code"] == "internal_error"
