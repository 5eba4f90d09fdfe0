"""A variant as ordinary tensors: base plus file, in float32, one parameter at a time.

Owns: the names, biases and embedding rows of the checkpoint that a variant stands for, and its
config.json. Does not know: how it is written (checkpoint_writer.py) or evaluated.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.codecs import CODECS, artifact
from tsugiki.codecs.artifact import Artifact
from tsugiki.codecs.base import Dense, Packed
from tsugiki.codecs.fit import LM_HEAD, ROWS, check_base, vocab_size
from tsugiki.compress.job import OpenedBase, open_base
from tsugiki.model.demo_base import resolve_base
from tsugiki.model.fingerprint import base_fingerprint
from tsugiki.model.stored_form import dense_config

# A module of these blocks gains a bias -> the flag of config.json, and all modules it concerns.
BIAS_FLAGS: Mapping[str, tuple[str, ...]] = {
    "attention_bias": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}


def open_variant(file: Path, base: str, cache_dir: Path) -> "Reconstruction":
    """Read and verify a variant file and its base; `base` is a directory or "demo".

    Raises:
        CorruptArtifact, InvalidArtifact, WrongBase, UnsupportedModel, ConfigError.
    """
    opened = open_base(resolve_base(base, cache_dir))
    found = artifact.read(file)
    return Reconstruction(opened, found, base_fingerprint(opened.checkpoint, cache_dir))


class Reconstruction:
    """The checkpoint that a variant stands for.

    Raises:
        WrongBase, InvalidArtifact: on construction, when the file does not belong to this base.
    """

    def __init__(self, base: OpenedBase, found: Artifact, fingerprint: str) -> None:
        check_base(found.header, fingerprint, base.layout)
        self.base = base
        self.header = found.header
        self.modules = found.modules
        self._vocabulary = vocab_size(found.header, base.layout)
        own_head = LM_HEAD in found.modules or LM_HEAD + ROWS in found.modules
        self.untied = base.layout.tied and own_head
        self.new_bias_flags = tuple(flag for flag in BIAS_FLAGS if self._gains(flag))

    def config(self) -> dict[str, Any]:
        """The base's config.json with what the variant changes: vocabulary, tying, biases."""
        config = dense_config(self.base.checkpoint.config)
        config["vocab_size"] = self._vocabulary
        config |= dict.fromkeys(self.new_bias_flags, True)
        if self.untied:
            config["tie_word_embeddings"] = False
        return config

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, float32 tensor) of every parameter, biases after their weights."""
        for name in self.base.checkpoint.names():
            if name not in self.base.layout.biases:
                yield from self._parameter(name, name)
        if self.untied:
            yield from self._parameter(LM_HEAD, self.base.layout.embedding)

    def _parameter(self, name: str, source: str) -> Iterator[tuple[str, Tensor]]:
        """One parameter, and the bias that belongs to it. `source`: the base's tensor."""
        base = self._added_to(name, source)
        dense = self._effective(name, base)
        yield name, self._with_rows(name, dense.weight)
        bias = self._bias(name, dense.bias)
        if bias is not None:
            yield _bias_name(name), bias

    def _added_to(self, name: str, source: str) -> Tensor:
        """The base's tensor; less what the variant's module replaces, if it does."""
        packed = self.modules.get(name)
        replaces = packed is not None and CODECS[packed.codec].role == "parameters"
        checkpoint = self.base.checkpoint
        return (checkpoint.backbone(source) if replaces else checkpoint.tensor(source)).float()

    def _effective(self, name: str, base: Tensor) -> Dense:
        packed = self.modules.get(name)
        return Dense(base) if packed is None else CODECS[packed.codec].effective(base, packed)

    def _with_rows(self, name: str, weight: Tensor) -> Tensor:
        packed = self.modules.get(name + ROWS)
        if packed is None:
            return weight
        return CODECS[packed.codec].effective(weight, packed).weight

    def _bias(self, weight: str, correction: Tensor | None) -> Tensor | None:
        """The base's bias, its change, and what the codec adds; zeros where config.json says so."""
        name = _bias_name(weight)
        layout = self.base.layout
        if name in layout.biases:
            base = self.base.checkpoint.tensor(name).float()
        elif self._flag(weight) in self.new_bias_flags:
            base = torch.zeros(layout.linears[weight].shape[0])
        else:
            return None
        changed = self._effective(name, base).weight
        return changed if correction is None else changed + correction

    def _gains(self, flag: str) -> bool:
        """Whether any linear of this block gets a bias that the base does not have."""
        layout = self.base.layout
        return any(
            self._flag(weight) == flag and _bias_name(weight) not in layout.biases
            for weight in (_weight_name(name) for name in self.modules if self._has_bias(name))
        )

    def _has_bias(self, name: str) -> bool:
        packed: Packed = self.modules[name]
        return name.endswith(".bias") or "bias" in packed.tensors

    @staticmethod
    def _flag(weight: str) -> str | None:
        module = weight.removesuffix(".weight").rpartition(".")[2]
        return next((flag for flag, modules in BIAS_FLAGS.items() if module in modules), None)


def _bias_name(weight: str) -> str:
    return f"{weight.removesuffix('.weight')}.bias"


def _weight_name(name: str) -> str:
    return f"{name.removesuffix('.bias')}.weight" if name.endswith(".bias") else name
