"""`tsugiki variants` and `tsugiki chat` against a fake server."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.fake_engine import FakeEngine
from tests.api.live_server import LiveServer
from tsugiki.api.app import create_app
from tsugiki.cli import main
from tsugiki.config import ServeConfig
from tsugiki.engine.variant_info import VariantEvent


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    """An engine with the variant `tuned`."""
    engine = FakeEngine(uploads=tmp_path / "uploads")
    engine.add("tuned")
    return engine


@pytest.fixture
def url(engine: FakeEngine, tmp_path: Path) -> Iterator[str]:
    """A server's address."""
    server = LiveServer(create_app(engine, ServeConfig(base="b", variants=tmp_path)))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    server.wait_until_started()
    yield server.url
    server.should_exit = True
    thread.join(timeout=10)


def test_variants_from_push_to_removal(
    url: str, engine: FakeEngine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "fresh.safetensors"
    file.write_bytes(b"content")

    def variants(*arguments: str) -> str:
        assert main(["variants", "--url", url, *arguments]) == 0
        return capsys.readouterr().out

    assert variants("push", str(file)).startswith("pushed fresh@sha256:")
    assert variants("push", str(file), "fresh", "--pin").startswith("already there")
    listing = variants("ls")
    assert "tuned" in listing
    assert "ready, active, pinned" in listing
    for action in ("load", "pin", "unpin"):
        assert "fresh@sha256" in variants(action, "fresh")
    assert "disk, 0 resident bytes" in variants("unload", "fresh")
    assert "1,000 bytes freed" in variants("rm", "fresh")
    assert "fresh" not in engine.versions


def test_versions_and_what_happened_to_them(
    url: str, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = engine.versions["tuned"].digest
    engine.happened = [VariantEvent(7, 0.0, "tuned", digest, "evicted", "to host")]

    def variants(*arguments: str) -> str:
        assert main(["variants", "--url", url, *arguments]) == 0
        return capsys.readouterr().out

    for action in ("activate", "alias"):
        assert variants(action, "tuned", digest) == f"tuned is {digest}\n"
    assert variants("canary", "tuned", digest, "2.5").endswith("answers 2.5 % of the users\n")
    assert "canary 2.5 %" in variants("ls")
    assert variants("canary", "tuned", digest, "0").endswith("answers nobody\n")
    assert variants("history", "tuned") == f"1970-01-01T00:00:01Z  upload        {digest}\n"
    event = variants("events", "--after", "6")
    assert event == f"7  1970-01-01T00:00:00Z  evicted       tuned@{digest[:19]}  to host\n"
    assert main(["variants", "--url", url, "rm", "tuned", "--digest", digest]) == 1
    assert "is the active version" in capsys.readouterr().err


def test_a_refusal_of_the_server_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--url", url, "load", "nobody"]) == 1
    assert capsys.readouterr().err == "tsugiki: no variant 'nobody'\n"


def test_a_file_that_is_not_there_is_one_line(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--url", url, "push", "/none"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_chat_keeps_the_conversation_and_obeys_commands(
    url: str,
    engine: FakeEngine,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = ["one", "two", "/model tuned", "/new", "three", "/models", "/what", "/quit", "four"]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert main(["chat", "--url", url, "--system", "S", "--max-tokens", "9"]) == 0
    prompts = [engine.text_side.decode(spec.prompt_token_ids) for spec in engine.specs]
    assert prompts == [
        "s:S\nu:one\n",
        "s:S\nu:one\na:hello\nu:two\n",
        "s:S\nu:three\n",
    ]
    assert [spec.variant.name for spec in engine.specs] == ["org/base", "org/base", "tuned"]
    output = capsys.readouterr().out.splitlines()
    assert output[:3] == ["hello", "hello", "hello"]
    assert output[3:5] == ["org/base", "tuned"]
    assert "/quit ends" in output[5]
