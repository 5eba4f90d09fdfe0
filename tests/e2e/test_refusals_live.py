"""What a live server refuses: each case has its 4xx in OpenAI's shape and one log line, and leaves
the listing, the directory and the answers of the good variants exactly as they were."""

import base64
import hashlib
import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from benchmarks.server import running_server
from tests.variants.tiny_variant import forge
from tsugiki.codecs import artifact
from tsugiki.codecs.container import Blob
from tsugiki.compress.job import CompressJob
from tsugiki.compress.pipeline import compress
from tsugiki.compress.progress import Progress

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
LIMIT = 200_000  # bytes of an upload
ASK = {"prompt": [0, 40, 41, 42, 43], "max_tokens": 8, "temperature": 0, "ignore_eos": True}
Q = "model.layers.0.self_attn.q_proj.weight"
Spoil = Callable[[Path], object]


def signature(path: Path) -> str:
    """Of the digest that the file claims, "" when it claims none."""
    digest = artifact.read_header(path).digest
    return base64.b64encode(KEY.sign(digest.encode())).decode()


@dataclass(frozen=True)
class Live:
    """A running server, its directory, its log and a good file that it has not got."""

    url: str
    variants: Path
    log: Path
    fresh: Path
    base_id: str

    def push(self, path: Path, name: str = "bad", **headers: str) -> httpx.Response:
        url = f"{self.url}/v1/variants/{name}"
        return httpx.put(url, content=path.read_bytes(), headers=headers, timeout=60)

    def answers(self) -> list[Any]:
        """Of both good variants and the base, token by token."""
        found = []
        for model in ("placed", "uploaded", self.base_id):
            body = {**ASK, "model": model, "return_token_ids": True}
            answer = httpx.post(f"{self.url}/v1/completions", json=body, timeout=60)
            found.append(answer.json()["choices"][0]["token_ids"])
        return found

    def picture(self) -> tuple[Any, ...]:
        """All that a refused upload must not change; the answers first, which load what is cold."""
        answers = self.answers()
        cards = httpx.get(f"{self.url}/v1/variants").json()["data"]
        for card in cards:
            del card["last_used"]
        return cards, tree(self.variants), answers


def tree(root: Path) -> dict[str, str]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def make_file(base: Path, tuned: Path, out: Path, codec: str) -> Path:
    job = CompressJob(codec, base, tuned, out, probe=6)
    compress(job, Progress(quiet=True))
    assert artifact.read_header(out).probe is not None
    return out


@pytest.fixture(scope="module")
def live(
    tiny_base: Path, tiny_tuned: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """One server for all cases; it trusts one key."""
    folder = tmp_path_factory.mktemp("live")
    (folder / "variants").mkdir()
    placed = make_file(
        tiny_base, tiny_tuned, folder / "variants" / "placed.safetensors", "bitdelta"
    )
    placed.with_suffix(".sig").write_text(signature(placed))
    fresh = make_file(tiny_base, tiny_tuned, folder / "fresh.safetensors", "deltadq")
    public = base64.b64encode(KEY.public_key().public_bytes_raw()).decode()
    config = folder / "server.toml"
    config.write_text(f'[[trusted_key]]\nid = "lead"\ned25519 = "{public}"\n')
    flags = ["--config", str(config), "--dtype", "float32", "--kv-memory", "16MiB"]
    flags += ["--max-upload-bytes", str(LIMIT)]
    with running_server(tiny_base, folder / "variants", folder / "log", flags) as url:
        models = httpx.get(f"{url}/v1/models").json()["data"]
        base_id = str(next(m["id"] for m in models if m["parent"] is None))
        server = Live(url, folder / "variants", folder / "log", fresh, base_id)
        uploaded = make_file(tiny_base, tiny_tuned, folder / "uploaded.safetensors", "lora")
        command = [sys.executable, "-m", "tsugiki", "variants", "--url", url]
        command += ["push", str(uploaded), "--signature", signature(uploaded)]
        pushed = subprocess.run(command, capture_output=True, text=True, check=True)
        assert pushed.stdout.startswith("pushed uploaded@sha256:")
        yield server


def edited(change: Callable[[dict[str, Any]], object]) -> Spoil:
    """The metadata changed and the digest made to fit."""
    return lambda path: forge(path, metadata=change)


def bytes_of(change: Callable[[bytes], bytes]) -> Spoil:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def fill(value: bytes) -> Spoil:
    """Every step and every value of the file, 16 bits each."""

    def spoil(content: bytearray, blobs: dict[str, Blob]) -> None:
        for blob in blobs.values():
            if blob.dtype == "F16":
                content[blob.begin : blob.begin + blob.nbytes] = value * blob.count

    def as_differences(fields: dict[str, Any]) -> None:
        for module in fields["modules"].values():
            if module["codec"] == "dense":
                module["options"]["mode"] = "delta"

    return lambda path: forge(path, metadata=as_differences, data=spoil)


def other_base(fields: dict[str, Any]) -> None:
    fields["base"]["fingerprint"] = "sha256:" + "cd" * 32


def other_shape(fields: dict[str, Any]) -> None:
    name = "model.layers.9.self_attn.q_proj.weight"
    fields["modules"] = {name if n == Q else n: m for n, m in fields["modules"].items()}


def swapped(fields: dict[str, Any]) -> None:
    """Two linears of different shapes under each other's names."""
    modules, down = fields["modules"], Q.replace("self_attn.q_proj", "mlp.down_proj")
    modules[Q], modules[down] = modules[down], modules[Q]


def more_declared(fields: dict[str, Any]) -> None:
    fields["report"]["coverage"]["modules"] += 1


def other_answer(fields: dict[str, Any]) -> None:
    fields["probe"]["greedy_ids"][0] = (fields["probe"]["greedy_ids"][0] + 1) % 512


CASES: dict[str, tuple[Spoil, int, str, str]] = {
    "wrong base": (edited(other_base), 422, "wrong_base", "cdcdcd"),
    "truncated": (bytes_of(lambda b: b[:-1]), 422, "corrupt_variant", "truncated"),
    "flipped byte": (
        bytes_of(lambda b: b[:-3] + bytes([b[-3] ^ 1]) + b[-2:]),
        422,
        "corrupt_variant",
        "digest",
    ),
    "half a header": (bytes_of(lambda b: b[:200]), 422, "corrupt_variant", "truncated"),
    "something appended": (bytes_of(lambda b: b + b"x"), 422, "corrupt_variant", "appended"),
    "pickle": (
        lambda path: path.write_bytes(pickle.dumps({"weight": [1.0] * 100})),
        422,
        "corrupt_variant",
        "not a safetensors file",
    ),
    "torch.save": (
        lambda path: torch.save({"weight": torch.ones(4)}, path),
        422,
        "corrupt_variant",
        "not a safetensors file",
    ),
    "unknown codec": (
        edited(lambda fields: fields.update(codec="zip")),
        422,
        "invalid_variant",
        "codec 'zip' is not known",
    ),
    "another format version": (
        edited(lambda fields: fields.update(format="other/2")),
        422,
        "invalid_variant",
        "format 'other/2' is not known",
    ),
    "a module left out": (
        edited(lambda fields: fields["modules"].pop(Q)),
        422,
        "invalid_variant",
        "but the modules need",
    ),
    "another shape": (edited(swapped), 422, "invalid_variant", "this base has"),
    "another parameter": (edited(other_shape), 422, "invalid_variant", "no such parameter"),
    "NaN": (fill(b"\x00\x7e"), 422, "invalid_variant", "nan"),
    "nothing changes": (fill(bytes(2)), 422, "invalid_variant", "changes no parameter"),
    "less than declared": (edited(more_declared), 422, "invalid_variant", "the report declares"),
    "probe mismatch": (edited(other_answer), 422, "probe_failed", "token 0 of"),
}


def new_lines(live: Live, before: int, name: str) -> list[str]:
    """What the log says of a name since then, but for the line that every request has."""
    lines = live.log.read_text()[before:].splitlines()
    return [line for line in lines if name in line and '"method"' not in line]


def check_refused(
    live: Live, answer: httpx.Response, status: int, code: str, words: str, lines: list[str]
) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["type"]) == (code, "invalid_request_error")
    assert words in error["message"]
    assert str(live.variants) not in error["message"]
    assert len(lines) == 1, lines
    assert words in lines[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["new", "uploaded"])
def test_a_bad_file_is_refused_and_changes_nothing(
    live: Live, case: str, name: str, tmp_path: Path
) -> None:
    spoil, status, code, words = CASES[case]
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(live.fresh.read_bytes())
    spoil(bad)
    headers = {"x-tsugiki-signature": signature(bad)} if case == "probe mismatch" else {}
    before, log = live.picture(), len(live.log.read_text())
    answer = live.push(bad, name, **headers)
    lines = new_lines(live, log, name)
    check_refused(live, answer, status, code, words, lines)
    assert live.picture() == before


def test_an_unsigned_file_is_refused(live: Live) -> None:
    before, log = live.picture(), len(live.log.read_text())
    answer = live.push(live.fresh, "unsigned")
    lines = new_lines(live, log, "unsigned")
    check_refused(live, answer, 422, "invalid_variant", "no signature", lines)
    assert live.picture() == before


def test_the_name_of_the_base_is_refused(live: Live) -> None:
    before, log = live.picture(), len(live.log.read_text())
    answer = live.push(live.fresh, live.base_id, **{"x-tsugiki-signature": signature(live.fresh)})
    lines = new_lines(live, log, live.base_id)
    check_refused(live, answer, 400, "invalid_request", "is the base; choose another", lines)
    assert live.picture() == before


def test_an_existing_name_with_if_none_match_is_a_conflict(live: Live) -> None:
    before, log = live.picture(), len(live.log.read_text())
    answer = live.push(live.fresh, "uploaded", **{"if-none-match": "*"})
    lines = new_lines(live, log, "uploaded")
    check_refused(live, answer, 409, "conflict", "exists; leave If-None-Match out", lines)
    assert live.picture() == before


@pytest.mark.parametrize("stated", [True, False], ids=["stated", "found out"])
def test_a_body_over_the_limit_is_refused(live: Live, stated: bool) -> None:
    before, log = live.picture(), len(live.log.read_text())
    url, body = f"{live.url}/v1/variants/oversize", bytes(LIMIT + 1)
    content: Any = body if stated else iter([body[:1000], body[1000:]])
    answer = httpx.put(url, content=content, timeout=60)
    lines = new_lines(live, log, "oversize")
    check_refused(live, answer, 413, "payload_too_large", f"the limit of {LIMIT}", lines)
    assert live.picture() == before


def test_a_version_that_is_not_there_cannot_be_activated(live: Live) -> None:
    before = live.picture()
    body = {"digest": "sha256:" + "0" * 64}
    answer = httpx.post(f"{live.url}/v1/variants/uploaded/activate", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert live.picture() == before


def test_the_card_says_what_changes_and_the_good_file_is_welcome(live: Live) -> None:
    """Last: it changes the directory."""
    answer = live.push(live.fresh, "fresh", **{"x-tsugiki-signature": signature(live.fresh)})
    assert answer.status_code == 201, answer.text
    covered = answer.json()["coverage"]
    assert covered["modules"] == covered["modules_declared"] == 19
    assert covered["by_part"].keys() == {"attention", "mlp", "norms"}
    assert json.dumps(answer.json()).count(artifact.read_header(live.fresh).digest) == 1
