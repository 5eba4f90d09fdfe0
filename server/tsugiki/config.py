"""ServeConfig: every setting of a server, from flags, TOML and environment. The only reader of env.

Owns: the settings, where they come from (flag over environment over TOML over default), their
validation. A new setting is one field: flag `--like-this`, TOML key `like_this` and environment
variable `TSUGIKI_LIKE_THIS` follow from it. Does not know what the settings do.
"""

# ruff: noqa: RUF009  (setting() returns a dataclass field, not a shared default)
import argparse
import os
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from tsugiki.errors import ConfigError
from tsugiki.keys import ApiKey, parse_keys
from tsugiki.setting_values import (
    one_of,
    parse_boolean,
    parse_integer,
    parse_number,
    parse_path,
    parse_paths,
    parse_size,
)
from tsugiki.trusted_keys import TrustedKey, parse_trusted_keys

DEVICES = ("auto", "cpu", "cuda")
DTYPES = ("bfloat16", "float32", "float16")
KERNELS = ("auto", "reference", "cpu", "cuda")
_LOOPBACK = ("localhost", "::1")


def setting(parse: Callable[[Any], Any], help: str, default: Any = MISSING, **extra: Any) -> Any:
    """A field of ServeConfig with what flag, TOML key and environment variable need."""
    metadata = {"parse": parse, "help": help, **extra}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """A server's settings. None means: decided at start from the base or the machine."""

    base: str = setting(str, "base model: a Hugging Face directory, or 'demo'", metavar="DIR")
    variants: Path = setting(parse_path, "directory of the registered variants", metavar="DIR")
    host: str = setting(str, "address to listen on", "127.0.0.1")
    port: int = setting(parse_integer, "port to listen on; 0 picks a free one", 8000)
    device: str = setting(one_of(*DEVICES), "where the model runs", "auto", choices=DEVICES)
    dtype: str = setting(one_of(*DTYPES), "activations and weights", "bfloat16", choices=DTYPES)
    kernels: str = setting(one_of(*KERNELS), "kernel backend", "auto", choices=KERNELS)
    threads: int | None = setting(parse_integer, "CPU threads of the model", None)
    served_model_name: str | None = setting(str, "the base's id in the API", None, metavar="NAME")
    max_model_len: int | None = setting(parse_integer, "longest prompt + output, in tokens", None)
    max_num_seqs: int = setting(parse_integer, "requests in one step", 64)
    max_num_batched_tokens: int = setting(parse_integer, "tokens in one step", 512)
    prompt_lookup: bool = setting(
        parse_boolean,
        "draft tokens that followed the last few where they stood before (changes no token)",
        False,
        switch=True,
    )
    step_time_target_ms: float = setting(
        parse_number,
        "what a step may take, prompts included, while anybody decodes; 0: no limit",
        50.0,
    )
    max_queued_requests: int = setting(parse_integer, "waiting requests before 429", 1024)
    block_size: int = setting(parse_integer, "tokens of one KV block", 16)
    prefix_caching: bool = setting(
        parse_boolean, "compute equal beginnings of prompts once per variant", True, switch=True
    )
    kv_memory: int | None = setting(parse_size, "bytes of the KV cache", None, metavar="BYTES")
    variant_memory: int = setting(
        parse_size, "bytes of variants on the device", 2**30, metavar="BYTES"
    )
    host_variant_memory: int | None = setting(
        parse_size,
        "bytes of verified variant files kept in host memory (default: 4GiB beside a GPU, else 0)",
        None,
        metavar="BYTES",
    )
    max_upload_bytes: int = setting(
        parse_size, "largest variant file taken by PUT", 2**32, metavar="BYTES"
    )
    max_partial_uploads: int = setting(
        parse_integer, "unfinished uploads that are kept for a day to be resumed", 64
    )
    max_partial_bytes: int = setting(
        parse_size, "bytes of all unfinished uploads, each counted whole", 2**34, metavar="BYTES"
    )
    max_body_bytes: int = setting(
        parse_size, "largest JSON body of a request", 2**25, metavar="BYTES"
    )
    drain_seconds: float = setting(parse_number, "time for running requests after SIGTERM", 30.0)
    watch_seconds: float = setting(
        parse_number,
        "between looks at the variants directory for what changed there; 0: never",
        2.0,
    )
    adapter_roots: tuple[Path, ...] = setting(
        parse_paths, "directories that load_lora_adapter may read", (), metavar="DIR", nargs="+"
    )
    accept_derived: bool = setting(
        parse_boolean, "serve deltas of the original on a base derived from it", False, switch=True
    )
    insecure: bool = setting(
        parse_boolean, "allow a public bind without keys (management stays off)", False, switch=True
    )
    api_key_file: Path | None = setting(
        parse_path, "TOML file of [[key]] tables", None, metavar="FILE"
    )
    cache_dir: Path = setting(
        parse_path, "compiled kernels and the demo base", Path(), metavar="DIR", env="TSUGIKI_CACHE"
    )
    keys: tuple[ApiKey, ...] = ()
    trusted_keys: tuple[TrustedKey, ...] = ()

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_num_batched_tokens", "block_size", "max_upload_bytes"):
            _require(name, getattr(self, name), minimum=1)
        for name in ("threads", "max_model_len", "kv_memory", "max_body_bytes"):
            _require(name, getattr(self, name), minimum=1)
        for name in ("max_queued_requests", "variant_memory", "host_variant_memory"):
            _require(name, getattr(self, name), minimum=0)
        _require("step_time_target_ms", self.step_time_target_ms, minimum=0)
        for name in ("drain_seconds", "watch_seconds", "max_partial_uploads", "max_partial_bytes"):
            _require(name, getattr(self, name), minimum=0)
        _require("port", self.port, minimum=0, maximum=65535)
        if self.cache_dir == Path():
            object.__setattr__(self, "cache_dir", default_cache_dir())
        for attribute in ("id", "sha256"):
            _refuse_duplicates("key", attribute, self.keys)
        for attribute in ("id", "ed25519"):
            _refuse_duplicates("trusted_key", attribute, self.trusted_keys)
        if not (self.loopback or self.keys or self.insecure):
            raise ConfigError(
                f"--host {self.host} is reachable from outside and no keys are configured; "
                "give --api-key-file, or --insecure to serve everybody"
            )

    @property
    def loopback(self) -> bool:
        """Only this machine can connect."""
        return self.host in _LOOPBACK or self.host.startswith("127.")


def _require(
    name: str, value: float | None, *, minimum: float, maximum: float = float("inf")
) -> None:
    if value is not None and not minimum <= value <= maximum:
        bound = f"at least {minimum}" if value < minimum else f"at most {maximum}"
        raise ConfigError(f"{flag(name)} is {value}; it must be {bound}")


def _refuse_duplicates(table: str, attribute: str, keys: Sequence[object]) -> None:
    values = [getattr(key, attribute) for key in keys]
    twice = {value for value in values if values.count(value) > 1}
    if twice:
        raise ConfigError(f"two [[{table}]] tables have the same {attribute}: {', '.join(twice)}")


def flag(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def default_cache_dir() -> Path:
    """Where built and downloaded things are kept: $TSUGIKI_CACHE, else ~/.cache/tsugiki."""
    return Path(os.environ.get("TSUGIKI_CACHE") or "~/.cache/tsugiki").expanduser()


def client_defaults() -> tuple[str, str | None]:
    """URL and API key of commands that talk to a server: $TSUGIKI_URL, $TSUGIKI_API_KEY."""
    return (
        os.environ.get("TSUGIKI_URL") or "http://127.0.0.1:8000",
        os.environ.get("TSUGIKI_API_KEY") or None,
    )


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag per field of ServeConfig, and --config."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings in TOML")
    for item in _settings():
        options: dict[str, Any] = {
            key: item.metadata[key]
            for key in ("choices", "metavar", "nargs")
            if key in item.metadata
        }
        if item.metadata.get("switch"):
            options["action"] = argparse.BooleanOptionalAction
        text = f"{item.metadata['help']}{_shown_default(item)}"
        parser.add_argument(flag(item.name), default=None, help=text, **options)


def load_config(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> ServeConfig:
    """The settings of `tsugiki serve`: flags over environment over the TOML file over defaults.

    Args:
        flags: parsed arguments by field name (None: not given), and `config`, the TOML file.
        environ: the process environment, unless a test says otherwise.

    Raises:
        ConfigError: a missing, unknown or bad value; names it, where it stood and the remedy.
    """
    environ = os.environ if environ is None else environ
    path = flags.get("config") or environ.get("TSUGIKI_CONFIG")
    table = _read_toml(Path(path)) if path else {}
    keys = parse_keys(table.pop("key", []), path)
    trusted_keys = parse_trusted_keys(table.pop("trusted_key", []), path)
    known = {item.name: item for item in _settings()}
    for name in table:
        if name not in known:
            raise ConfigError(f"{path}: unknown setting {name!r}; known: {', '.join(known)}")
    values = {
        name: value
        for name, item in known.items()
        if (value := _value(item, flags, environ, table)) is not None
    }
    for name in ("base", "variants"):
        if name not in values:
            raise ConfigError(f"{flag(name)} is missing; try --base demo --variants DIR")
    if key_file := values.get("api_key_file"):
        keys += parse_keys(_read_toml(key_file).get("key", []), key_file)
        if not keys:
            raise ConfigError(f"{key_file}: holds no [[key]] table")
    return ServeConfig(**values, keys=keys, trusted_keys=trusted_keys)


def _settings() -> list["Field[Any]"]:
    return [item for item in fields(ServeConfig) if "parse" in item.metadata]


def _shown_default(item: "Field[Any]") -> str:
    if item.default is MISSING or item.default in (None, (), Path(), False):
        return ""
    return f" (default {item.default})"


def _value(
    item: "Field[Any]", flags: Mapping[str, Any], environ: Mapping[str, str], table: dict[str, Any]
) -> Any:
    variable = item.metadata.get("env", f"TSUGIKI_{item.name.upper()}")
    for source, value in (
        (flag(item.name), flags.get(item.name)),
        (variable, environ.get(variable) or None),
        (item.name, table.get(item.name)),
    ):
        if value is not None:
            try:
                return item.metadata["parse"](value)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from None
    return None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return {name.replace("-", "_"): value for name, value in tomllib.loads(text).items()}
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
