"""What is asked of a compression, and the two directories it works on, opened and checked.

Owns: `CompressJob`, `Source`. Does not know: how anything is packed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tsugiki.codecs.base import Layout
from tsugiki.codecs.metadata import PROBE_LIMITS, BaseRef
from tsugiki.compress.calibration import MAX_DIALOGUES
from tsugiki.compress.config_check import check_configs
from tsugiki.compress.survey import Pairs, parameters_of
from tsugiki.compress.text_side import collect_text_side
from tsugiki.errors import CompressionRefused, ConfigError
from tsugiki.model.architecture import Architecture, read_architecture
from tsugiki.model.checkpoint import Checkpoint, open_checkpoint
from tsugiki.model.device import CPU
from tsugiki.model.fingerprint import base_fingerprint
from tsugiki.model.layout import layout_of
from tsugiki.setting_values import check_parent

SIZEABLE = ("deltadq", "lora")  # codecs with a size to choose
AUTO = "auto"  # in place of a codec: the one of AUTO_CODECS whose file is the smallest
AUTO_CODECS = ("deltadq", "bitdelta", "lora")  # the likeliest first
ADAPTER_FILE = "adapter_config.json"  # what makes a directory a PEFT adapter


@dataclass(frozen=True, slots=True)
class CompressJob:
    """One call of `tsugiki compress`."""

    codec: str
    base: Path
    tuned: Path
    out: Path
    options: Mapping[str, Any] = field(default_factory=dict)  # the codec's, as asked for
    group_size: str | None = None  # "auto", "auto-attention": chosen from calibration (deltadq)
    calibration: Path | None = None
    calibration_examples: int = MAX_DIALOGUES
    max_bytes: int | None = None
    target_ratio: float | None = None
    max_kl: float | None = None  # nats per answer token, on dialogues that calibration did not see
    cache_dir: Path | None = None  # for the base's fingerprint and compiled kernels
    probe: int | None = 0  # tokens of its answer; None: as many as usual if that is cheap
    device: torch.device = CPU  # of the models that calibrate and measure

    def __post_init__(self) -> None:
        goals = (self.max_bytes, self.target_ratio, self.max_kl)
        if sum(goal is not None for goal in goals) > 1:
            raise ConfigError(
                "--max-bytes, --target-ratio and --max-kl exclude each other; give one"
            )
        if self.max_kl is not None:
            self._check_max_kl(self.max_kl)
        elif self.codec == AUTO:
            raise ConfigError("codec auto compares files that are equally good: give --max-kl X")
        if self.target_ratio is not None and not self.target_ratio > 0:
            raise ConfigError(f"--target-ratio is {self.target_ratio}; it must be above 0")
        if self.group_size is not None and self.calibration is None:
            raise ConfigError(f"--group-size {self.group_size} needs --calibration FILE.jsonl")
        most = PROBE_LIMITS["greedy_ids"]
        if self.probe is not None and not 0 <= self.probe <= most:
            raise ConfigError(f"--probe is {self.probe}; it must be 0 (none) to {most} tokens")
        check_parent("--out", self.out)
        if self.out.is_dir():
            raise ConfigError(f"--out {self.out} is a directory; name a file, x.safetensors")

    @property
    def codecs(self) -> tuple[str, ...]:
        """Those that may carry the fine-tune."""
        return AUTO_CODECS if self.codec == AUTO else (self.codec,)

    def _check_max_kl(self, goal: float) -> None:
        if not goal > 0:
            raise ConfigError(f"--max-kl is {goal}; it must be above 0")
        if self.calibration is None:
            raise ConfigError(
                f"--max-kl {goal} needs --calibration FILE.jsonl: KL is measured on half of it"
            )
        if self.codec not in (*SIZEABLE, AUTO):
            known = ", ".join((*SIZEABLE, AUTO))
            raise ConfigError(f"--max-kl chooses a size, and {self.codec} has none: use {known}")


@dataclass(frozen=True, slots=True)
class OpenedBase:
    """The base directory: nothing is read but names and shapes."""

    checkpoint: Checkpoint
    architecture: Architecture
    layout: Layout

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        return parameters_of(self.checkpoint)

    def reference(self, cache_dir: Path | None) -> BaseRef:
        """How a variant file names this base; hashes all of it unless the cache knows it."""
        path = self.checkpoint.path
        names = self.checkpoint.config.get("architectures") or [self.architecture.family]
        return BaseRef(path.resolve().name, names[0], base_fingerprint(self.checkpoint, cache_dir))


def open_base(path: Path) -> OpenedBase:
    """Open a base directory.

    Raises:
        UnsupportedModel: no model directory, or not of a supported family.
    """
    checkpoint = open_checkpoint(path)
    architecture = read_architecture(checkpoint.config)
    return OpenedBase(checkpoint, architecture, layout_of(architecture))


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a PEFT adapter instead of a model."""
    return (path / ADAPTER_FILE).is_file()


@dataclass(frozen=True, slots=True)
class FullFineTune:
    """A fine-tuned checkpoint whose forward pass and tokenizer agree with its base's."""

    pairs: Pairs
    text: dict[str, Any] | None


def open_full(base: OpenedBase, path: Path) -> FullFineTune:
    """Open a fine-tuned checkpoint and hold everything but its tensors against the base.

    Raises:
        UnsupportedModel: no model directory. CompressionRefused: config or tokenizer differ.
    """
    tuned = open_checkpoint(path)
    check_configs(base.checkpoint.config, tuned.config)
    if path.resolve() == base.checkpoint.path.resolve():
        raise CompressionRefused(f"{path} is the base itself; --tuned names the fine-tune")
    text = collect_text_side(base.checkpoint.path, path, base.checkpoint.config, tuned.config)
    return FullFineTune(Pairs(base.checkpoint, tuned, base.layout), text)
