"""Settings: where they come from, and what is refused."""

import argparse
import base64
import hashlib
import shlex
from pathlib import Path
from typing import Any

import pytest

from tsugiki.config import (
    ServeConfig,
    add_serve_arguments,
    default_cache_dir,
    load_config,
)
from tsugiki.errors import ConfigError
from tsugiki.keys import ApiKey
from tsugiki.setting_values import parse_size
from tsugiki.trusted_keys import TrustedKey

DIGEST = hashlib.sha256(b"secret").hexdigest()
PUBLIC = base64.b64encode(bytes(range(32))).decode()
NEEDED = {"base": "demo", "variants": "v"}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (512, 512),
        ("512", 512),
        ("512MiB", 512 * 2**20),
        ("4GiB", 2**32),
        ("1.5 gb", 1_500_000_000),
        ("2KB", 2000),
        ("7B", 7),
    ],
)
def test_sizes_have_units(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "4 elephants", "1e3", "4GiB2", None, True])
def test_what_is_no_size_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="not a size"):
        parse_size(text)


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('port = 1\nmax-num-seqs = 2\nkv_memory = "1MiB"\nbase = "b"\nvariants = "v"\n')
    config = load_config(
        {"config": file, "port": 3},
        {"TSUGIKI_PORT": "4", "TSUGIKI_MAX_NUM_SEQS": "5", "TSUGIKI_DTYPE": ""},
    )
    assert (config.port, config.max_num_seqs, config.kv_memory) == (3, 5, 2**20)
    assert (config.dtype, config.base) == ("bfloat16", "b")


def test_every_field_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_serve_arguments(parser)
    flags = (
        "--base b --variants v --host ::1 --port 1 --device cpu --dtype float32 --kernels cpu "
        "--threads 2 --served-model-name n --max-model-len 9 --max-num-seqs 3 "
        "--max-num-batched-tokens 7 --max-queued-requests 0 --block-size 8 --kv-memory 1KiB "
        "--variant-memory 2KiB --host-variant-memory 3KiB --max-upload-bytes 4KiB "
        "--max-body-bytes 5KiB --drain-seconds 1.5 --adapter-roots a b --accept-derived "
        "--insecure --cache-dir c"
    )
    args = parser.parse_args(shlex.split(flags))
    config = load_config(vars(args), {})
    assert config == ServeConfig(
        base="b",
        variants=Path("v"),
        host="::1",
        port=1,
        device="cpu",
        dtype="float32",
        kernels="cpu",
        threads=2,
        served_model_name="n",
        max_model_len=9,
        max_num_seqs=3,
        max_num_batched_tokens=7,
        max_queued_requests=0,
        block_size=8,
        kv_memory=1024,
        variant_memory=2048,
        host_variant_memory=3072,
        max_upload_bytes=4096,
        max_body_bytes=5120,
        drain_seconds=1.5,
        adapter_roots=(Path("a"), Path("b")),
        accept_derived=True,
        insecure=True,
        cache_dir=Path("c"),
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"base": None}, "--base is missing"),
        ({"variants": None}, "--variants is missing"),
        ({"port": "x"}, "--port: 'x' is not a whole number"),
        ({"port": 70000}, "at most 65535"),
        ({"max_num_seqs": 0}, "--max-num-seqs is 0"),
        ({"dtype": "int3"}, "--dtype: 'int3' is not one of"),
        ({"drain_seconds": "soon"}, "not a number"),
        ({"drain_seconds": -1}, "at least 0"),
        ({"watch_seconds": -1}, "at least 0"),
        ({"max_partial_uploads": -1}, "at least 0"),
        ({"host": "0.0.0.0"}, "--api-key-file, or --insecure"),
    ],
)
def test_a_bad_value_is_named_with_its_remedy(flags: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config({**NEEDED, **flags}, {})


def test_a_bad_environment_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="TSUGIKI_PORT: 'x'"):
        load_config(NEEDED, {"TSUGIKI_PORT": "x"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("prot = 1", "unknown setting 'prot'"),
        ("port = ", "is not TOML"),
        ("port = true", "not a whole number"),
        ("[[key]]\nid = 'a'", "has id, sha256"),
        (f"[[key]]\nid = 'a'\nsha256 = '{DIGEST}'\ncolour = 1", "has id, sha256"),
        ("[[key]]\nid = 'a'\nsha256 = 'short'", "64 lower-case hex"),
        (f"[[key]]\nid = 'a'\nsha256 = '{DIGEST}'\nrole = 'king'", "neither user nor admin"),
        (f"[[key]]\nid = 'a'\nsha256 = '{DIGEST}'\nweight = 0", "above 0"),
        (f"[[key]]\nid = ''\nsha256 = '{DIGEST}'", "non-empty id"),
        (f"[[key]]\nid = 'a'\nsha256 = '{DIGEST}'\n" * 2, "same id"),
        (f"[[key]]\nid = 'a'\nsha256 = '{DIGEST}'\nvariants = 'v'", "list of names"),
        ("key = 3", "list of tables"),
        ("trusted_key = 3", "list of tables"),
        ("[[trusted_key]]\nid = 'a'", "has id and ed25519"),
        ("[[trusted_key]]\nid = 'a'\ned25519 = 'short'", "32 raw bytes"),
        (f"[[trusted_key]]\nid = 'a'\ned25519 = '{PUBLIC}'\n" * 2, "same id"),
        (
            f"[[trusted_key]]\nid = 'a'\ned25519 = '{PUBLIC}'\n"
            f"[[trusted_key]]\nid = 'b'\ned25519 = '{PUBLIC}'\n",
            "same ed25519",
        ),
    ],
)
def test_a_bad_file_is_refused_with_the_reason(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config({**NEEDED, "config": file}, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        load_config({**NEEDED, "config": tmp_path / "none.toml"}, {})


def test_keys_come_from_the_key_file_and_the_settings(tmp_path: Path) -> None:
    settings, keys = tmp_path / "c.toml", tmp_path / "keys.toml"
    other = hashlib.sha256(b"other").hexdigest()
    settings.write_text(f"[[key]]\nid = 'a'\nsha256 = '{DIGEST}'\n")
    keys.write_text(
        f"[[key]]\nid = 'b'\nsha256 = '{other}'\nrole = 'admin'\nweight = 2\nvariants = ['x']\n"
    )
    config = load_config({**NEEDED, "config": settings, "api_key_file": str(keys)}, {})
    assert config.keys == (ApiKey("a", DIGEST), ApiKey("b", other, "admin", 2, ("x",)))


def test_trusted_keys_come_from_the_settings(tmp_path: Path) -> None:
    settings = tmp_path / "c.toml"
    settings.write_text(f"[[trusted_key]]\nid = 'release'\ned25519 = '{PUBLIC}'\n")
    config = load_config({**NEEDED, "config": settings}, {})
    assert config.trusted_keys == (TrustedKey("release", PUBLIC),)


def test_a_key_file_without_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text("")
    with pytest.raises(ConfigError, match="no \\[\\[key\\]\\] table"):
        load_config({**NEEDED, "api_key_file": str(file)}, {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "::1"])
def test_loopback_needs_no_keys(host: str) -> None:
    assert load_config({**NEEDED, "host": host}, {}).loopback


def test_a_public_bind_needs_keys_or_insecure() -> None:
    key = ApiKey("a", DIGEST)
    public = ServeConfig(base="b", variants=Path("v"), host="0.0.0.0", keys=(key,))
    assert not public.loopback
    assert load_config({**NEEDED, "host": "::", "insecure": True}, {}).insecure


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSUGIKI_CACHE", "/somewhere")
    assert default_cache_dir() == Path("/somewhere")
    assert load_config(NEEDED).cache_dir == Path("/somewhere")
    monkeypatch.delenv("TSUGIKI_CACHE")
    assert default_cache_dir() == Path("~/.cache/tsugiki").expanduser()
