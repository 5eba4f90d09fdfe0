"""The command line: what it prints, where, and how it exits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tsugiki.cli import COMMANDS, main


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from tsugiki.cli import main\n"
        "try: main(['--help'])\n"
        "finally: print(sorted({'torch', 'transformers', 'fastapi', 'httpx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert "usage: tsugiki" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["distil"], ["serve", "--port"], ["variants"], ["variants", "push"]]
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: tsugiki" in capsys.readouterr().err


def test_a_failure_is_1_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--base", "x", "--variants", "y", "--kv-memory", "much"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("tsugiki: --kv-memory: 'much' is not a size")
    assert error.count("\n") == 1


def test_debug_adds_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--debug", "--variants", "y"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variants", "--url", "http://127.0.0.1:9", "ls"]) == 1
    assert "no answer from http://127.0.0.1:9" in capsys.readouterr().err


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(url: str, api_key: str | None) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tsugiki.commands.variants.Client", interrupted)
    assert main(["variants", "ls"]) == 1
    assert capsys.readouterr().err == "tsugiki: interrupted\n"


def test_a_reader_that_closes_early_is_no_traceback(tmp_path: Path) -> None:
    command = f"{sys.executable} -m tsugiki --version | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env={**os.environ}, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr
