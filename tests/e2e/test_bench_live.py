"""`tsugiki bench` on a real server: its counts are the server's."""

import json
from pathlib import Path

import httpx

from benchmarks.churn.memory import value_of
from tsugiki.cli import main


def generated(url: str) -> float:
    """Completion tokens of one variant, by the server's metrics."""
    series = 'tsugiki_completion_tokens_total{variant="deltadq"}'
    try:
        return value_of(httpx.get(f"{url}/metrics").text, series)
    except KeyError:  # nothing generated yet
        return 0.0


def test_all_tokens_asked_for_arrive_and_the_server_counts_as_many(
    server: str, tmp_path: Path
) -> None:
    out = tmp_path / "bench.json"
    load = ["--concurrency", "2", "--requests", "6", "--warm-up", "0", "--max-tokens", "5"]
    prompts = ["--prompt-tokens", "4:9", "--vocabulary", "20:60", "--shared-prefix-tokens", "3"]
    before = generated(server)
    flags = ["--url", server, "--model", "deltadq", "--json", str(out), *load, *prompts]
    assert main(["bench", *flags]) == 0
    summary = json.loads(out.read_text())["summary"]
    assert (summary["complete"], summary["failed"]) == (6, 0)
    assert generated(server) - before == 30
    assert round(summary["tokens_per_second"] * summary["seconds"]) == 30


def test_an_unknown_model_is_the_error_that_the_server_names(server: str) -> None:
    assert main(["bench", "--url", server, "--model", "nobody", "--concurrency", "1"]) == 1
