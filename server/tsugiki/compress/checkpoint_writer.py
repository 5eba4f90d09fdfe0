"""A Hugging Face directory, written whole or not at all, in the memory of one shard.

Owns: shards, config.json, tokenizer and text side of a decompressed variant.
Does not know: where the tensors come from.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tsugiki.compress.text_side import GENERATION_FILE
from tsugiki.compress.tokenizer_check import has_tokenizer, load_tokenizer
from tsugiki.errors import ConfigError
from tsugiki.model.checkpoint import INDEX_FILE, SINGLE_FILE
from tsugiki.setting_values import check_parent

SHARD_BYTES = 4 * 10**9


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its name when the block ends without an error.

    Raises:
        ConfigError: the target exists and is not empty, or its parent does not exist.
    """
    check_parent("--out", target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"--out {target} exists already; give a new directory")
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.replace(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@dataclass(slots=True)
class _Shards:
    """Weight files under construction."""

    directory: Path
    limit: int
    pending: dict[str, Tensor] = field(default_factory=dict)
    written: list[list[str]] = field(default_factory=list)  # names in each shard
    total: int = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = tensor.numel() * tensor.element_size()
        held = sum(t.numel() * t.element_size() for t in self.pending.values())
        if self.pending and held + size > self.limit:
            self.flush()
        self.pending[name] = tensor.contiguous()
        self.total += size

    def flush(self) -> None:
        save_file(self.pending, self._path(len(self.written)), metadata={"format": "pt"})
        self.written.append(list(self.pending))
        self.pending = {}

    def finish(self) -> None:
        """Give the shards the names that transformers looks for."""
        self.flush()
        if len(self.written) == 1:
            self._path(0).rename(self.directory / SINGLE_FILE)
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self.written):
            shard = f"model-{number + 1:05}-of-{len(self.written):05}.safetensors"
            self._path(number).rename(self.directory / shard)
            weight_map |= dict.fromkeys(names, shard)
        index = {"metadata": {"total_size": self.total}, "weight_map": weight_map}
        (self.directory / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.directory / f"shard-{number}.safetensors"


def write_weights(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """config.json and the weights in `dtype`, as one file or as shards with an index."""
    rounded = ((name, tensor.to(dtype)) for name, tensor in tensors)
    write_tensors(directory, rounded, shard_bytes)
    shown = {**config, "dtype": str(dtype).removeprefix("torch.")}
    shown.pop("torch_dtype", None)  # its older name
    write_config(directory, shown)


def write_tensors(
    directory: Path, tensors: Iterable[tuple[str, Tensor]], shard_bytes: int = SHARD_BYTES
) -> None:
    """The weights as they are, as one file or as shards with an index."""
    shards = _Shards(directory, shard_bytes)
    for name, tensor in tensors:
        shards.add(name, tensor)
    shards.finish()


def write_config(directory: Path, config: Mapping[str, Any]) -> None:
    """config.json."""
    content = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(content, encoding="utf-8")


def write_text_side(directory: Path, base: Path, text: Mapping[str, Any] | None) -> None:
    """Tokenizer, chat template and generation_config.json: the base's, as the variant
    changes them."""
    if has_tokenizer(base):
        _write_tokenizer(directory, base, text or {})
    source = base / GENERATION_FILE
    generation = json.loads(source.read_text(encoding="utf-8")) if source.is_file() else {}
    if text is not None:
        ids = text["eos_token_ids"]
        generation["eos_token_id"] = ids[0] if len(ids) == 1 else ids
        generation |= text["generation_defaults"]
        if text["generation_defaults"]:
            generation["do_sample"] = text["generation_defaults"].get("temperature") != 0
    if generation:
        content = json.dumps(generation, indent=2) + "\n"
        (directory / GENERATION_FILE).write_text(content, encoding="utf-8")


def _write_tokenizer(directory: Path, base: Path, text: Mapping[str, Any]) -> None:
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(base)
    for token in text.get("added_tokens", ()):
        tokenizer.add_tokens(
            [AddedToken(token["content"], special=token["special"], normalized=False)],
            special_tokens=token["special"],
        )
    if text.get("chat_template") is not None:
        tokenizer.chat_template = text["chat_template"]
    ids = text.get("eos_token_ids")
    if ids and tokenizer.eos_token_id not in ids:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(ids[0])
    tokenizer.save_pretrained(directory)
