"""Servers that stay in memory, stopped while others are measured."""

import os
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.resident import resident
from benchmarks.server import ServerDidNotStart, free_port

PROGRAM = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def state(pid: int) -> str:
    """R, S, T (stopped), ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_server_runs_only_while_it_is_awake(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", PROGRAM, str(port)]
    with resident("small", command, f"http://127.0.0.1:{port}", tmp_path / "log") as server:
        os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
        assert state(server.process.pid) == "T"
        with server.awake():
            assert httpx.get(f"{server.url}/v1/models").status_code == 200
    assert server.process.returncode is not None


def test_a_server_that_ends_at_once_is_reported_with_its_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no model here')"]
    with (
        pytest.raises(ServerDidNotStart, match="no model here"),
        resident("broken", command, "http://127.0.0.1:9", tmp_path / "log"),
    ):
        pytest.fail("it started")
