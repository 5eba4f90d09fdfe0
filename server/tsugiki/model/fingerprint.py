"""The identity of a base: a hash over what is stored, however it is split into files.

Owns: the serialisation below and its cache. Does not know: families, compute dtypes, variants.

Serialisation (docs/format.md quotes it). For every canonical name that the checkpoint stores, in
ascending order of its UTF-8 bytes (checkpoint.py says what canonical means: tied duplicates are
dropped), one line of canonical JSON, ASCII only, no spaces, ended by a newline (0x0A):

    ["model.embed_tokens.weight","BF16",[49152,576],"<64 hex digits>"]\\n

The dtype is safetensors' word; the digits are the SHA-256 of the tensor's stored bytes, row-major
and little-endian as in the file. The fingerprint is "sha256:" and the SHA-256 of all lines in hex.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tsugiki.errors import UnsupportedModel
from tsugiki.model.checkpoint import Checkpoint

FINGERPRINT = re.compile(r"sha256:[0-9a-f]{64}")
CACHE_FILE = "fingerprints.json"


def base_fingerprint(checkpoint: Checkpoint, cache_dir: Path | None) -> str:
    """ "sha256:<64 hex>" of a checkpoint; reads all of it once (about 1 s per 500 MB).

    With a cache directory the answer is kept there by path, size and modification time of files.
    """
    if cache_dir is None:
        return _compute(checkpoint)
    key = _cache_key(checkpoint)
    known = _read_cache(cache_dir)
    if key not in known:
        # read again before writing: another process may have added its own meanwhile
        known = {key: _compute(checkpoint)} | _read_cache(cache_dir)
        _write_cache(cache_dir, known)
    return known[key]


def derived_from(config: Mapping[str, Any]) -> str | None:
    """The fingerprint of the base that this one was made from, by compression or rounding: what
    config.json says as {"tsugiki": {"derived_from": "sha256:<64 hex>"}}; None for an original.

    Raises:
        UnsupportedModel: it says something else.
    """
    ours = config.get("tsugiki", {})
    found = ours.get("derived_from") if isinstance(ours, dict) else ours
    if found is not None and not (isinstance(found, str) and FINGERPRINT.fullmatch(found)):
        raise UnsupportedModel(
            f"config.json has tsugiki.derived_from {found!r}; expected 'sha256:' and 64 hex digits"
        )
    return found


def _compute(checkpoint: Checkpoint) -> str:
    total = hashlib.sha256()
    for name in sorted(checkpoint.stored_names(), key=lambda name: name.encode()):
        line = [name, checkpoint.stored_dtype(name), list(checkpoint.shape(name))]
        line.append(_content_hash(checkpoint, name))
        total.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    return f"sha256:{total.hexdigest()}"


def _content_hash(checkpoint: Checkpoint, name: str) -> str:
    stored = checkpoint.tensor(name).contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(stored.numpy().data).hexdigest()


def _cache_key(checkpoint: Checkpoint) -> str:
    stats = [(str(file.resolve()), file.stat()) for file in checkpoint.files]
    parts = [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]
    # tying decides whether a stored lm_head counts
    return hashlib.sha256(json.dumps([checkpoint.tied, parts]).encode()).hexdigest()


def _read_cache(cache_dir: Path) -> dict[str, str]:
    try:
        known = json.loads((cache_dir / CACHE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # no cache yet, or a damaged one: it is only a cache, and is written anew
    return known if isinstance(known, dict) else {}


def _write_cache(cache_dir: Path, known: dict[str, str]) -> None:
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=cache_dir, prefix=CACHE_FILE, delete=False
    ) as file:
        json.dump(known, file, indent=1, sort_keys=True)
    os.replace(file.name, cache_dir / CACHE_FILE)
