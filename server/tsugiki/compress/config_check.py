"""Whether two config.json describe the same forward pass, apart from what a variant may carry.

Owns: which keys matter, and the refusal that names each one with both values. Does not know:
weights, tokenizers, codecs.

Both files are read through transformers' own configuration classes first, so that a default left
out, an old spelling (`rope_theta` beside `rope_scaling`) and a new one (`rope_parameters`) compare
equal when they mean the same. A key that is not known to be harmless counts as one that matters: a
new model option that changes the forward must never pass unseen.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tsugiki.errors import CompressionRefused

# Training, bookkeeping, generation and text: none of them enters the forward pass. Token ids and
# generation defaults travel on the text side of the variant instead (text_side.py).
_HARMLESS = """
    _name_or_path _model_name_or_path _attn_implementation_autoset _from_model_config name_or_path
    architectures transformers_version torch_dtype dtype model_max_length
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id decoder_start_token_id
    attention_dropout hidden_dropout hidden_dropout_prob resid_pdrop embd_pdrop initializer_range
    use_cache gradient_checkpointing pretraining_tp keys_to_ignore_at_inference cache_implementation
    output_attentions output_hidden_states output_scores return_dict return_dict_in_generate
    chunk_size_feed_forward is_encoder_decoder problem_type id2label label2id finetuning_task
    task_specific_params transformers.js_config unsloth_version unsloth_fixed
    max_length min_length do_sample temperature top_k top_p typical_p repetition_penalty
    length_penalty num_beams num_return_sequences no_repeat_ngram_size early_stopping
    diversity_penalty num_beam_groups bad_words_ids exponential_decay_length_penalty
    forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens
    encoder_no_repeat_ngram_size remove_invalid_values prefix tokenizer_class tsugiki
"""
HARMLESS = frozenset(_HARMLESS.split())
# Rope kinds whose angles do not depend on the declared context length: there a longer or shorter
# max_position_embeddings is a limit, not a change of the forward.
LENGTH_FREE_ROPE = frozenset({"default", "linear", "llama3"})

Config = Mapping[str, Any]


def check_configs(base: Config, tuned: Config) -> None:
    """Refuse a fine-tune whose config.json asks for another forward pass than its base's.

    Raises:
        CompressionRefused: every differing key with both values.
    """
    differences = config_differences(base, tuned)
    if differences:
        raise CompressionRefused(
            "the fine-tune's config.json changes the forward pass, which a variant cannot carry: "
            + "; ".join(differences)
            + ". Compress against the base it was really trained from"
        )


def config_differences(base: Config, tuned: Config) -> list[str]:
    """Each difference that matters as "key: base A, fine-tune B", sorted by key."""
    first, second = normalised(base), normalised(tuned)
    if first.get("model_type") != second.get("model_type"):  # the rest would only be noise
        return [_difference("model_type", first, second)]
    keys = sorted(set(first) | set(second))
    return [
        _difference(key, first, second)
        for key in keys
        if not _same(first.get(key), second.get(key)) and not _carried(key, first, second)
    ]


def normalised(config: Config) -> dict[str, Any]:
    """The config with every default written out, in transformers' present spelling."""
    from transformers import CONFIG_MAPPING

    text = config.get("text_config")
    plain = dict(text) if isinstance(text, Mapping) else dict(config)
    kind = plain.get("model_type")
    if kind not in CONFIG_MAPPING:
        return plain
    full: dict[str, Any] = CONFIG_MAPPING[kind].from_dict(plain).to_dict()
    full.pop("text_config", None)
    return {key: value for key, value in full.items() if key not in HARMLESS}


def _carried(key: str, base: Config, tuned: Config) -> bool:
    if key == "vocab_size":  # added tokens
        return int(tuned[key]) > int(base[key])
    if key == "tie_word_embeddings":  # a tied base with an untied fine-tune stores both changes
        return bool(base[key]) and not tuned[key]
    if key in ("attention_bias", "mlp_bias"):  # Llama: new biases are stored as changes of zeros
        return base["model_type"] == "llama" and not base.get(key) and bool(tuned.get(key))
    if key == "max_position_embeddings":
        return _rope_kinds(base) <= LENGTH_FREE_ROPE
    return False


def _rope_kinds(config: Config) -> set[str]:
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        return {"unknown"}
    nested = [value for value in rope.values() if isinstance(value, Mapping)] or [rope]
    return {str(entry.get("rope_type", "default")) for entry in nested}


def _same(a: Any, b: Any) -> bool:
    """Equality with numbers at float32 precision, the one in which models use them."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, float) or isinstance(b, float):
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        return numbers and bool(np.float32(a) == np.float32(b))
    return bool(a == b)


def _difference(key: str, base: Config, tuned: Config) -> str:
    return f"{key}: base {base.get(key)!r}, fine-tune {tuned.get(key)!r}"
