"""Keys: who may call, manage, and see what."""

import hashlib
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import BASE, FakeEngine
from tsugiki.keys import ApiKey

ADMIN, USER, LIMITED, LIMITED_ADMIN = "k-admin", "k-user", "k-limited", "k-limited-admin"


def key(identity: str, secret: str, **fields: Any) -> ApiKey:
    return ApiKey(identity, hashlib.sha256(secret.encode()).hexdigest(), **fields)


KEYS = (
    key("ops", ADMIN, role="admin"),
    key("anna", USER),
    key("bob", LIMITED, variants=("tuned", "team-*")),
    key("eve", LIMITED_ADMIN, role="admin", variants=("adapter",)),
)
ROUTES = [
    ("GET", "/v1/models"),
    ("GET", "/v1/models/tuned"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/tokenize"),
    ("POST", "/detokenize"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
    ("GET", "/v1/variants"),
    ("PUT", "/v1/variants/x"),
    ("GET", "/v1/variants/tuned"),
    ("DELETE", "/v1/variants/tuned"),
    ("POST", "/v1/variants/tuned/load"),
    ("GET", "/v1/variants/tuned/history"),
    ("GET", "/v1/variants/events"),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
    ("GET", "/no/such/route"),
]
MANAGEMENT = [
    ("PUT", "/v1/variants/tuned"),
    ("DELETE", "/v1/variants/tuned"),
    ("DELETE", "/v1/variants/tuned?digest=sha256:000000000000"),
    *(("POST", f"/v1/variants/tuned/{verb}") for verb in ("load", "unload", "pin", "unpin")),
    *(("POST", f"/v1/variants/tuned/{verb}") for verb in ("rollback", "activate", "canary")),
    ("POST", "/v1/load_lora_adapter"),
    ("POST", "/v1/unload_lora_adapter"),
]


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def complete(client: TestClient, secret: str, model: str) -> Any:
    body = {"model": model, "prompt": "x"}
    return client.post("/v1/completions", json=body, headers=bearer(secret))


@pytest.mark.parametrize(
    "headers", [{}, bearer("wrong"), {"Authorization": ADMIN}, {"Authorization": "Basic x"}]
)
def test_every_route_needs_a_known_key(make_client: MakeClient, headers: dict[str, str]) -> None:
    with make_client(keys=KEYS) as client:
        for method, path in ROUTES:
            response = client.request(method, path, headers=headers)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["error"]["code"] == "invalid_api_key"


def test_health_alone_needs_no_key(make_client: MakeClient) -> None:
    with make_client(keys=KEYS) as client:
        assert client.get("/health").status_code == 200


def manage(client: TestClient, headers: dict[str, str]) -> list[int]:
    body = {"lora_name": "adapter", "lora_path": "/x", "digest": "sha256:" + "0" * 12, "percent": 5}
    return [
        client.request(
            method, path, headers=headers, json=body if method == "POST" else None
        ).status_code
        for method, path in MANAGEMENT
    ]


def test_management_needs_an_admin_key(make_client: MakeClient) -> None:
    with make_client(keys=KEYS) as client:
        assert set(manage(client, bearer(USER))) == {403}
        refused = client.delete("/v1/variants/tuned", headers=bearer(USER))
        assert refused.json()["error"]["code"] == "insufficient_permissions"


def test_without_keys_management_needs_a_loopback_bind(make_client: MakeClient) -> None:
    with make_client(host="0.0.0.0", insecure=True) as client:
        assert set(manage(client, {})) == {403}
        assert client.get("/v1/variants").status_code == 200


def test_an_admin_key_manages_on_a_public_bind(make_client: MakeClient) -> None:
    with make_client(keys=KEYS, host="0.0.0.0") as client:
        put = client.put("/v1/variants/new", content=b"x", headers=bearer(ADMIN))
    assert put.status_code == 201


def test_a_limited_key_sees_and_reaches_only_its_variants(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    engine.add("team-a")
    with make_client(keys=KEYS) as client:
        listed = client.get("/v1/models", headers=bearer(LIMITED)).json()["data"]
        versions = client.get("/v1/variants", headers=bearer(LIMITED)).json()["data"]
        assert {model["id"] for model in listed} == {"tuned", "team-a"}
        assert {version["name"] for version in versions} == {"tuned", "team-a"}
        assert complete(client, LIMITED, "team-a").status_code == 200
        for name in ("adapter", BASE):
            assert complete(client, LIMITED, name).status_code == 404
            seen = client.get(f"/v1/models/{name}", headers=bearer(LIMITED))
            assert seen.status_code == 404
        for path in ("/v1/variants/adapter", "/v1/variants/adapter/history"):
            assert client.get(path, headers=bearer(LIMITED)).status_code == 404


def test_a_foreign_variant_looks_exactly_like_one_that_does_not_exist(
    make_client: MakeClient,
) -> None:
    with make_client(keys=KEYS) as client:
        foreign = complete(client, LIMITED, "adapter").json()["error"]["message"]
        missing = complete(client, LIMITED, "nothing").json()["error"]["message"]
    assert foreign.replace("adapter", "nothing") == missing


def test_an_admin_manages_only_its_variants(make_client: MakeClient) -> None:
    with make_client(keys=KEYS) as client:
        own = client.post("/v1/variants/adapter/load", headers=bearer(LIMITED_ADMIN))
        other = client.post("/v1/variants/tuned/load", headers=bearer(LIMITED_ADMIN))
        upload = client.put("/v1/variants/new", content=b"x", headers=bearer(LIMITED_ADMIN))
    assert [own.status_code, other.status_code, upload.status_code] == [200, 404, 404]


def test_the_tenant_is_the_key_or_else_the_variant(
    make_client: MakeClient, engine: FakeEngine
) -> None:
    with make_client(keys=KEYS) as client:
        complete(client, USER, "tuned")
    with make_client() as client:
        complete(client, "anything", "tuned")
    assert [spec.tenant for spec in engine.specs] == ["anna", "tuned"]
