"""Log lines, metrics, /health, and the description of the API."""

import json
import logging
from dataclasses import replace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from tests.api.fake_engine import FakeEngine
from tsugiki.api import metrics
from tsugiki.api.responses import VariantVersions
from tsugiki.engine.client import LoadTotals, TierInfo
from tsugiki.engine.variant_info import LoadTimes


def ask(client: TestClient, **fields: Any) -> Any:
    return client.post("/v1/completions", json={"model": "tuned", "prompt": "secret", **fields})


def samples(client: TestClient) -> dict[tuple[str, str], float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in families
        for sample in family.samples
    }


def test_every_request_ends_with_one_json_line(
    client: TestClient, engine: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tsugiki.access"):
        ask(client)
        ask(client, stream=True)
        ask(client, model="nobody")
    lines = [json.loads(record.message) for record in caplog.records]
    assert [line["status"] for line in lines] == [200, 200, 404]
    for line in lines[:2]:
        assert line["variant"] == "tuned"
        assert line["digest"] == engine.versions["tuned"].digest
        assert line["tenant"] == "tuned"
        assert (line["prompt_tokens"], line["completion_tokens"]) == (6, 5)
        assert line["finish_reason"] == "stop"
        assert 0 <= line["ttft_ms"] <= line["ms"]
    assert "secret" not in caplog.text


def test_metrics_count_requests_and_tokens_by_variant(client: TestClient) -> None:
    ask(client)
    ask(client, stream=True, n=2)
    ask(client, model="nobody")
    found = samples(client)
    assert found["tsugiki_requests_total", "POST,200"] == 2
    assert found["tsugiki_requests_total", "POST,404"] == 1
    assert found["tsugiki_prompt_tokens_total", "tuned"] == 12
    assert found["tsugiki_completion_tokens_total", "tuned"] == 15
    assert found["tsugiki_time_to_first_token_seconds_count", ""] == 2
    assert found["tsugiki_inter_token_seconds_count", ""] >= 1
    assert found["tsugiki_waiting", ""] == 1
    assert found["tsugiki_last_batch_rows", ""] == 3
    assert found["tsugiki_variant_versions", "ready"] == 2
    assert found["tsugiki_variant_bytes", "tuned"] == 1000
    assert found["tsugiki_prefix_cache_queries_tokens_total", ""] == 40
    assert found["tsugiki_prefix_cache_hits_tokens_total", ""] == 30
    assert found["tsugiki_drafted_tokens_total", ""] == 21
    assert found["tsugiki_accepted_tokens_total", ""] == 14
    assert found["tsugiki_build_info", "cpu,float32,reference"] == 1


def test_metrics_tell_of_tiers_and_loads(client: TestClient, engine: FakeEngine) -> None:
    host = TierInfo("host", 100, 30, 10, 2, 5, 6, 7)
    device = TierInfo("device", 200, 40, 20, 3, 8, 9, 1)
    loads = LoadTotals(4, 0.5, 1.5, 2.5)
    counted = replace(engine.stats(), tiers=(host, device), loads=loads)
    engine.stats = lambda: counted  # type: ignore[method-assign]
    found = samples(client)
    for tier in (host, device):
        for name in ("budget_bytes", "bytes", "shared_bytes", "variants"):
            assert found[f"tsugiki_variant_tier_{name}", tier.name] == getattr(tier, name)
        for name in ("hits", "misses", "evictions"):
            assert found[f"tsugiki_variant_tier_{name}_total", tier.name] == getattr(tier, name)
    assert found["tsugiki_variant_loads_total", ""] == 4
    for part in ("read", "verify", "stage"):
        assert found["tsugiki_variant_load_seconds_total", part] == getattr(loads, part)
    assert client.get("/health").json()["tiers"][0]["name"] == "host"


def test_a_card_shows_the_parts_of_a_load(client: TestClient, engine: FakeEngine) -> None:
    timed = replace(engine.versions["tuned"], load_ms=6.0, timings=LoadTimes(1.0, 2.0, 3.0))
    engine.versions["tuned"] = replace(timed, signed_by="release")
    card = client.get("/v1/variants/tuned").json()
    VariantVersions.model_validate(card)
    assert card["timings"] == {"read": 1.0, "verify": 2.0, "stage": 3.0}
    assert card["signed_by"] == "release"


def test_unknown_names_never_become_labels(client: TestClient) -> None:
    for number in range(20):
        ask(client, model=f"guess-{number}")
    assert not any("guess" in labels for _, labels in samples(client))


def test_labels_are_bounded(
    client: TestClient, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "MAX_VARIANT_LABELS", 2)
    for name in ("a", "b", "c", "d"):
        engine.add(name)
        ask(client, model=name)
    found = samples(client)
    assert found["tsugiki_generations_total", metrics.OTHER_VARIANTS] == 2
    assert ("tsugiki_generations_total", "c") not in found


def test_health_shows_how_the_model_is_computed(client: TestClient) -> None:
    body = client.get("/health").json()
    assert (body["status"], body["kernels"], body["dtype"]) == ("ok", "reference", "float32")
    assert client.get("/ready").json() == {"status": "ready"}


def test_the_engine_is_stopped_with_the_application(make_client: Any, engine: FakeEngine) -> None:
    with make_client(drain_seconds=3):
        assert engine.is_alive
    assert engine.stopped_with == 3


def test_the_description_names_every_route_of_the_contract(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) >= {
        "/v1/models",
        "/v1/models/{model_id}",
        "/v1/completions",
        "/v1/chat/completions",
        "/tokenize",
        "/detokenize",
        "/health",
        "/ready",
        "/metrics",
        "/v1/variants",
        "/v1/variants/{name}",
        *(f"/v1/variants/{{name}}/{verb}" for verb in ("load", "unload", "pin", "unpin")),
        *(
            f"/v1/variants/{{name}}/{verb}"
            for verb in ("activate", "canary", "rollback", "history")
        ),
        "/v1/variants/events",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    }


def test_every_route_describes_its_errors_in_our_shape(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    schema = response["content"]["application/json"]["schema"]
                    assert schema["$ref"].endswith("/ErrorAnswer"), (path, status)


def test_the_gaps_between_tokens_are_a_cumulative_histogram() -> None:
    gaps = metrics.TokenGaps()
    gaps.observe([0.001, 0.0011, 0.3])
    gaps.observe([9.0])
    (family,) = gaps.collect()
    counted = {sample.labels.get("le"): sample.value for sample in family.samples}
    assert (counted["0.001"], counted["0.0025"], counted["0.5"], counted["+Inf"]) == (1, 2, 3, 4)
    assert [s.value for s in family.samples if s.name.endswith("_sum")] == [pytest.approx(9.3021)]
