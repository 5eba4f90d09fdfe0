"""PEFT's LoRA adapters as they are: a directory -> packed modules.

Owns: which adapters mean "W + scale B A" and nothing else; everything else is refused by name.
Does not know: bases (staging checks shapes), variant files.
Source: peft 0.21 `LoraConfig`, `LoraLayer.update_layer` (scaling) and `get_pattern_key`.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tsugiki.codecs.base import Packed
from tsugiki.codecs.lora import CODEC, DTYPES, low_rank
from tsugiki.errors import CompressionRefused

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
# what has no bearing on the merged weights, or is read below
HARMLESS = frozenset(
    (
        *("task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path"),
        *("revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha"),
        *("lora_dropout", "use_rslora", "layers_to_transform", "layers_pattern", "rank_pattern"),
        *("alpha_pattern", "megatron_core", "qalora_group_size", "loftq_config", "eva_config"),
        *("init_lora_weights", "bias", "ensure_weight_tying", "runtime_config"),
    )
)
# initialisations that leave the base's weights as they are; others change them in memory
PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal", "mini_random", "true", "false")


def from_peft(directory: str | Path, dtype: str | None = None) -> dict[str, Packed]:
    """The packed modules of a PEFT LoRA adapter, by canonical weight name.

    `dtype` ("float16", "bfloat16", "float32") converts the factors; None keeps what is stored.

    Raises:
        CompressionRefused: not a LoRA adapter in safetensors, or one that does more than
            W + scale B A (DoRA, trained biases, modules_to_save ...): each is named.
    """
    directory = Path(directory)
    config = _config(directory)
    factors = _factors(directory, config)
    modules: dict[str, Packed] = {}
    for module, pair in sorted(factors.items()):
        a, b = _pair(module, pair, dtype)
        packed = low_rank(f"{module}.weight", a, b, _scale(config, module, a.shape[0]))
        CODEC.validate(packed)
        modules[packed.name] = packed
    return modules


def _config(directory: Path) -> dict[str, Any]:
    try:
        config = json.loads((directory / CONFIG_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CompressionRefused(
            f"{directory} has no {CONFIG_FILE}: give the directory that save_pretrained wrote"
        ) from error
    except ValueError as error:
        raise CompressionRefused(f"{directory / CONFIG_FILE} is not JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise CompressionRefused(
            f"{directory} is a PEFT adapter of type {kind!r}; only LORA is read"
        )
    _refuse_extras(directory, config)
    return config


def _refuse_extras(directory: Path, config: Mapping[str, Any]) -> None:
    found = [f"{key}={config[key]!r}" for key in sorted(config) if _extra(key, config[key])]
    if found:
        raise CompressionRefused(
            f"{directory} is a LoRA adapter with {', '.join(found)}, which is more than "
            "W + scale B A: merge it into a checkpoint and compress that with another codec"
        )


def _extra(key: str, value: Any) -> bool:
    if key == "init_lora_weights":
        return value not in PLAIN_INITS
    if key == "bias":
        return value not in (None, "none")
    return key not in HARMLESS and bool(value)


def _factors(directory: Path, config: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    path = directory / WEIGHTS_FILE
    if not path.exists():
        pickle = " (adapter_model.bin is a pickle and is never read)"
        raise CompressionRefused(
            f"{directory} has no {WEIGHTS_FILE}"
            f"{pickle if (directory / PICKLE_FILE).exists() else ''}: "
            "save the adapter with safe_serialization=True"
        )
    factors: dict[str, dict[str, Tensor]] = {}
    strangers = []
    try:
        with safe_open(path, framework="pt") as file:
            for key in list(file.keys()):
                match = KEY.fullmatch(key)
                if match is None:
                    strangers.append(key)
                    continue
                factors.setdefault(match["module"], {})[match["factor"]] = file.get_tensor(key)
    except SafetensorError as error:
        raise CompressionRefused(f"{path} is not a safetensors file: {error}") from error
    if strangers or not factors:
        raise CompressionRefused(
            f"{path} holds {strangers or 'no tensors'}; expected lora_A and lora_B of linears only"
        )
    return factors


def _pair(module: str, pair: Mapping[str, Tensor], dtype: str | None) -> tuple[Tensor, Tensor]:
    if set(pair) != {"A", "B"}:
        raise CompressionRefused(
            f"{module} has lora_{sorted(pair)[0]} alone; its partner is missing"
        )
    a, b = pair["A"], pair["B"]
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        raise CompressionRefused(
            f"{module} has lora_A {list(a.shape)} and lora_B {list(b.shape)}; "
            "expected [rank, in] and [out, rank]"
        )
    if a.dtype != b.dtype or a.dtype not in DTYPES.values():
        raise CompressionRefused(f"{module} has factors of {a.dtype} and {b.dtype}: convert them")
    target = a.dtype if dtype is None else DTYPES[dtype]
    return a.to(target).contiguous(), b.to(target).contiguous()


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """lora_alpha / r, or lora_alpha / sqrt(r) with rank-stabilised LoRA (arXiv 2312.03732)."""
    wanted = _pattern(config.get("rank_pattern"), module, config.get("r"))
    alpha = _pattern(config.get("alpha_pattern"), module, config.get("lora_alpha"))
    if wanted != rank:
        raise CompressionRefused(f"{module} has rank {rank}, but {CONFIG_FILE} says {wanted!r}")
    if type(alpha) not in (int, float):
        raise CompressionRefused(f"{CONFIG_FILE} gives {module} lora_alpha {alpha!r}; not a number")
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _pattern(patterns: Any, module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module's name, as PEFT matches it."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
