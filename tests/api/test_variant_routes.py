"""/v1/variants, /v1/models, /tokenize and the adapter routes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.api.conftest import MakeClient
from tests.api.fake_engine import BASE, MAX_MODEL_LEN, FakeEngine
from tsugiki.api.responses import Deleted, ModelCard, VariantCard, VariantVersions
from tsugiki.errors import (
    CorruptArtifact,
    InvalidArtifact,
    StorageFull,
    TsugikiError,
    WrongBase,
)

BAD_NAMES = ["..", ".hidden", "a b", "-x", "x" * 129, "%2e%2e%2fetc", "a%00b", "a\\b", "ü"]


def test_models_lists_the_base_first_then_variants(client: TestClient) -> None:
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == [BASE, "tuned", "adapter"]
    assert cards[0]["parent"] is None
    assert cards[1]["parent"] == BASE
    for card in cards:
        ModelCard.model_validate(card)


@pytest.mark.parametrize("path", ["org/base", "org%2Fbase", "tuned"])
def test_a_model_is_found_by_id_slashes_raw_or_encoded(client: TestClient, path: str) -> None:
    response = client.get(f"/v1/models/{path}")
    assert response.status_code == 200
    assert response.json()["id"] == path.replace("%2F", "/")


def test_a_fixed_version_is_a_model_too(client: TestClient, engine: FakeEngine) -> None:
    digest = engine.versions["tuned"].digest
    assert client.get(f"/v1/models/tuned@{digest}").json()["digest"] == digest
    assert client.get("/v1/models/tuned@sha256:000000000000").status_code == 404


def test_a_variant_shows_its_versions(client: TestClient) -> None:
    body = client.get("/v1/variants/tuned").json()
    VariantVersions.model_validate(body)
    assert [version["digest"] for version in body["versions"]] == [body["digest"]]
    assert client.get("/v1/variants/nobody").status_code == 404


def test_an_upload_is_201_then_200_with_the_digest(
    client: TestClient, engine: FakeEngine, tmp_path: Path
) -> None:
    first = client.put("/v1/variants/new?pin=true", content=b"content")
    again = client.put("/v1/variants/new", content=b"content")
    assert [first.status_code, again.status_code] == [201, 200]
    VariantCard.model_validate(first.json())
    assert first.json()["digest"] == again.json()["digest"]
    assert first.json()["pinned"] is True
    assert engine.uploaded == b"content"
    assert list((tmp_path / "uploads").iterdir()) == []


def test_activate_false_reaches_the_engine(client: TestClient) -> None:
    assert client.put("/v1/variants/new?activate=false", content=b"x").json()["active"] is False


def test_if_none_match_refuses_only_existing_names(client: TestClient, engine: FakeEngine) -> None:
    headers = {"If-None-Match": "*"}
    taken = client.put("/v1/variants/tuned", content=b"x", headers=headers)
    free = client.put("/v1/variants/new", content=b"x", headers=headers)
    assert [taken.status_code, free.status_code] == [409, 201]


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("method", ["PUT", "GET", "DELETE"])
def test_names_that_are_no_names_reach_nothing(
    client: TestClient, engine: FakeEngine, method: str, name: str
) -> None:
    response = client.request(method, f"/v1/variants/{name}", content=b"x")
    assert response.status_code in (400, 404, 405)
    assert engine.uploaded == b""


def test_the_base_cannot_be_overwritten(make_client: MakeClient, engine: FakeEngine) -> None:
    base = replace(engine.base(), id="base")
    engine.base = lambda: base  # type: ignore[method-assign]
    with make_client() as client:
        assert client.put("/v1/variants/base", content=b"x").status_code == 400


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (WrongBase("made for another base"), 422),
        (CorruptArtifact("truncated"), 422),
        (InvalidArtifact("codec 'x' is unknown"), 422),
        (StorageFull("no room"), 507),
    ],
)
def test_a_refused_file_says_why_and_leaves_nothing(
    client: TestClient, engine: FakeEngine, tmp_path: Path, error: TsugikiError, status: int
) -> None:
    engine.variant_error = error
    response = client.put("/v1/variants/new", content=b"x" * 3_000_000)
    assert response.status_code == status
    assert response.json()["error"]["message"] == str(error)
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("verb", ["load", "unload", "pin", "unpin"])
def test_residency_operations_answer_state_and_bytes(client: TestClient, verb: str) -> None:
    body = client.post(f"/v1/variants/tuned/{verb}").json()
    VariantCard.model_validate(body)
    assert body["state"] == ("disk" if verb == "unload" else "ready")
    assert body["pinned"] is (verb == "pin")
    assert client.post(f"/v1/variants/nobody/{verb}").status_code == 404


def test_rollback_without_history_is_a_conflict(client: TestClient) -> None:
    assert client.post("/v1/variants/tuned/rollback").status_code == 409


def test_delete_reports_the_bytes_freed(client: TestClient) -> None:
    response = client.delete("/v1/variants/tuned")
    Deleted.model_validate(response.json())
    assert response.json()["bytes_freed"] == 1000
    assert client.delete("/v1/variants/tuned").status_code == 404


def test_tokenize_and_detokenize_are_inverse(client: TestClient) -> None:
    asked = {"model": "tuned", "prompt": "Hi", "return_token_strs": True}
    tokens = client.post("/tokenize", json=asked).json()
    assert tokens == {
        "tokens": [72, 105],
        "count": 2,
        "max_model_len": MAX_MODEL_LEN,
        "token_strs": ["H", "i"],
    }
    body = {"model": "tuned", "tokens": tokens["tokens"]}
    assert client.post("/detokenize", json=body).json() == {"prompt": "Hi"}


def test_tokenize_takes_messages_through_the_template(client: TestClient) -> None:
    body = {"model": "tuned", "messages": [{"role": "user", "content": "Hi"}]}
    assert client.post("/tokenize", json=body).json()["count"] == len("u:Hi\n")


@pytest.mark.parametrize("fields", [{}, {"prompt": "a", "messages": [{"role": "u"}]}])
def test_tokenize_wants_one_of_prompt_and_messages(
    client: TestClient, fields: dict[str, Any]
) -> None:
    assert client.post("/tokenize", json={"model": "tuned", **fields}).status_code == 400


def test_detokenize_refuses_ids_outside_the_vocabulary(client: TestClient) -> None:
    response = client.post("/detokenize", json={"model": "tuned", "tokens": [256]})
    assert response.status_code == 400


def load(client: TestClient, path: Path) -> Any:
    body = {"lora_name": "peft", "lora_path": str(path), "load_inplace": False}
    return client.post("/v1/load_lora_adapter", json=body)


def test_adapters_by_path_are_off_unless_roots_are_configured(
    client: TestClient, tmp_path: Path
) -> None:
    response = load(client, tmp_path)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "unsupported"


def test_adapters_load_only_from_under_the_roots(make_client: MakeClient, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    (root / "good").mkdir(parents=True)
    outside.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").write_text("x")
    with make_client(adapter_roots=(root,)) as client:
        assert load(client, root / "good").status_code == 200
        for bad in ("link", "../outside", "file", "missing", "nul\0"):
            assert load(client, root / bad).status_code == 400
        assert load(client, outside).status_code == 400


def test_unload_lora_adapter_removes_adapters_only(client: TestClient) -> None:
    def unload(name: str) -> int:
        return client.post("/v1/unload_lora_adapter", json={"lora_name": name}).status_code

    assert [unload("adapter"), unload("adapter"), unload("tuned")] == [200, 404, 409]
