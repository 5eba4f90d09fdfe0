"""`tsugiki bench` from flags to table and file."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.bench.conftest import FakeServer
from tsugiki.cli import main


def bench(server: FakeServer, *flags: str) -> int:
    async def run() -> int:
        async with server.url() as url:
            return await asyncio.to_thread(main, ["bench", "--url", url, *flags])

    return asyncio.run(run())


def report(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def test_a_closed_loop_warms_up_and_sends_four_requests_a_slot(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    flags = ["--concurrency", "3", "--model", "a", "--model", "b", "--max-tokens", "4"]
    assert bench(server, *flags, "--slo-ttft-ms", "60000", "--json", str(out)) == 0
    assert [body["model"] for body in server.bodies[:3]] == ["a", "b", "a"]
    summary = report(out)["summary"]
    assert summary["complete"] == 12
    assert summary["goodput"]["share"] == 1.0
    assert len(server.bodies) == 3 + 12
    assert server.most_running == 3
    printed = capsys.readouterr().out
    assert "time to first token" in printed
    assert "a generated token" in printed


def test_an_open_loop_sends_what_it_is_told(server: FakeServer, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    flags = ["--rate", "500", "--requests", "20", "--max-tokens", "2", "--json", str(out)]
    assert bench(server, *flags, "--distribution", "zipf", "--chat") == 0
    assert report(out)["summary"]["complete"] == 20
    assert {body["model"] for body in server.bodies} == {"first"}
    assert all("messages" in body for body in server.bodies)


def test_shared_prefixes_and_prompts_of_a_file_are_sent(server: FakeServer, tmp_path: Path) -> None:
    load = ["--concurrency", "1", "--requests", "2", "--warm-up", "0", "--max-tokens", "1"]
    assert bench(server, *load, "--shared-prefix-tokens", "9", "--prompt-tokens", "3") == 0
    first, second = (body["prompt"] for body in server.bodies)
    assert first[:9] == second[:9]
    assert len(first) == 12
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "say it"}\n')
    assert bench(server, *load, "--prompts", str(prompts)) == 0
    assert server.bodies[-1]["prompt"] == "say it"


def test_a_failed_request_makes_the_command_fail_and_is_listed(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["bad"] = [b"data: [DONE]\n\n"]
    flags = ["--concurrency", "2", "--model", "good", "bad", "--max-tokens", "1"]
    assert bench(server, *flags) == 1
    assert "4 x empty: no token came" in capsys.readouterr().out


def test_a_warm_up_in_which_nothing_goes_well_ends_it(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    server.script["bad"] = [b"data: [DONE]\n\n"]
    assert bench(server, "--concurrency", "1", "--model", "bad") == 1
    assert "no request of the warm-up went well" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        ["--concurrency", "0"],
        ["--rate", "0"],
        ["--concurrency", "1", "--rate", "1"],
        ["--concurrency", "1", "--prompt-tokens", "5:3"],
        ["--concurrency", "1", "--disconnect", "2"],
        [],
    ],
)
def test_flags_that_make_no_sense_are_wrong_usage(flags: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *flags])
    assert stopped.value.code == 2


def test_requests_must_fill_the_slots(
    server: FakeServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(server, "--concurrency", "4", "--requests", "6", "--model", "a") == 1
    assert "try 4" in capsys.readouterr().err


def test_a_prompt_file_without_prompts_is_refused(
    server: FakeServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"text": "no"}\n')
    assert bench(server, "--concurrency", "1", "--model", "a", "--prompts", str(file)) == 1
    assert '"prompt"' in capsys.readouterr().err
