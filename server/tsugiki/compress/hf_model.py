"""Plain transformers models out of directories or tensors: the oracle of every variant.

Owns: loading, and running a padded batch up to the logits of chosen positions. Does not know:
variants, codecs, metrics.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tsugiki.compress.job import ADAPTER_FILE
from tsugiki.errors import UnsupportedModel
from tsugiki.model.checkpoint import Checkpoint, open_checkpoint, stored_form
from tsugiki.model.device import CPU, device_of
from tsugiki.model.stored_form import dense_config

TIED_DUPLICATE = "lm_head.weight"


def load_model(
    directory: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Any:
    """The causal language model of a Hugging Face directory, in eval mode; of a compressed base,
    with the weights that it stands for."""
    if (compressed := _compressed(directory)) is not None:
        tensors = ((name, compressed.tensor(name)) for name in compressed.names())
        return model_of(dense_config(compressed.config), tensors, dtype, device)
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # stages are shown by progress.py
    try:
        model = AutoModelForCausalLM.from_pretrained(
            directory, dtype=dtype, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise UnsupportedModel(f"{directory}: transformers cannot load it: {error}") from None
    return model.to(device).eval()


def _compressed(directory: Path) -> Checkpoint | None:
    """The checkpoint, when it is one that transformers would not understand."""
    if not (directory / "config.json").is_file():
        return None
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return None if stored_form(config) is None else open_checkpoint(directory)


def load_fine_tune(
    directory: Path, base: Path, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Any:
    """A fine-tuned checkpoint, or a PEFT adapter merged into its base.

    Raises:
        UnsupportedModel: it cannot be loaded, or it is an adapter and peft is not installed.
    """
    if not (directory / ADAPTER_FILE).is_file():
        return load_model(directory, dtype, device)
    try:
        from peft import PeftModel
    except ImportError:
        raise UnsupportedModel(
            f"{directory} is a PEFT adapter; to run it: pip install peft"
        ) from None
    adapted = PeftModel.from_pretrained(load_model(base, dtype), directory)
    return adapted.merge_and_unload().to(device).eval()


def model_of(
    config: Mapping[str, Any],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Any:
    """A model with this config.json and these tensors, by checkpoint name.

    Raises:
        UnsupportedModel: a tensor is missing or unknown to the model.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    settings = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    state = dict(tensors)
    missing, unexpected = model.load_state_dict(state, strict=False)
    absent = [
        name for name in missing if name != TIED_DUPLICATE or not settings.tie_word_embeddings
    ]
    if absent or unexpected:
        raise UnsupportedModel(f"missing tensors {absent}, unknown tensors {unexpected}")
    model.tie_weights()
    return model.to(device).eval()


@torch.no_grad()
def refill(model: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Overwrite parameters of a model one by one: no second model is ever in memory."""
    for name, tensor in tensors:
        model.get_parameter(name).copy_(tensor)


@torch.inference_mode()
def answer_logits(
    model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], shared: int = 0
) -> Tensor:
    """See `logits_at_answers`; nothing is kept for gradients."""
    return logits_at_answers(model, sequences, starts, shared)


def logits_at_answers(
    model: Any, sequences: Sequence[Sequence[int]], starts: Sequence[int], shared: int = 0
) -> Tensor:
    """Logits that predict tokens start .. end of each sequence: float32 [sum of lengths, vocab].

    Only those positions reach the output projection, which for a small model is most of the work.
    The first `shared` tokens, fewer than any start, are the same in all sequences: they go through
    the model once, and their keys and values serve every row, gradients included.
    """
    longest = max(map(len, sequences))
    ids = torch.zeros(len(sequences), longest, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    for row, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
        wanted[row, start - 1 : len(sequence) - 1] = True
    device = device_of(model)
    ids, mask, wanted = ids.to(device), mask.to(device), wanted.to(device)
    known = _keys_and_values(model, ids[:1, :shared], len(sequences)) if shared else None
    hidden = model.base_model(
        input_ids=ids[:, shared:],
        attention_mask=mask,
        past_key_values=known,
        use_cache=known is not None,
    )
    logits: Tensor = model.get_output_embeddings()(hidden.last_hidden_state[wanted[:, shared:]])
    return logits.float()


def _keys_and_values(model: Any, ids: Tensor, rows: int) -> Any:
    """Of a beginning [1, n] that this many rows share."""
    cache = model.base_model(input_ids=ids, use_cache=True).past_key_values
    cache.batch_repeat_interleave(rows)
    return cache
