"""Variants in a mixed batch: each equals transformers on its own full fine-tune, in float32."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, PreTrainedConfig

from tsugiki.codecs.base import EmbeddingDelta, Packed, ResidentVariant, StagedLinear
from tsugiki.model.loader import BaseModel, load_base
from tsugiki_kernels.deltas import DenseDelta, Placed
from tsugiki_kernels.reference import ReferenceBackend

SIZES: dict[str, Any] = {
    "vocab_size": 120,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.15,
    "pad_token_id": 0,
}
KERNELS = ReferenceBackend()


@dataclass(frozen=True)
class DenseCodec:
    """The simplest delta: the difference itself. Two of them stand for two codecs in one step."""

    name: str

    def lookup(self, packed: Packed, ids: Tensor) -> Tensor:
        return packed.tensors["delta"][ids]


def as_variant(
    base: BaseModel, base_model: Any, tuned: Any, codec: str, reconstruct_from: int | None = None
) -> ResidentVariant:
    """A transformers fine-tune as a resident variant, nothing compressed."""
    layout, dense = base.layout, DenseCodec(codec)
    old, new = base_model.state_dict(), tuned.state_dict()
    vocab, biases = layout.embedding_shape[0], {w: b for b, w in layout.biases.items()}
    parts: dict[str, list[Placed]] = {}
    for name, place in layout.linears.items():
        weight = new[name][:vocab] - old[name][:vocab]
        bias = new[biases[name]] - old[biases[name]] if name in biases else None
        delta = DenseDelta(place.shape, weight, bias)
        parts.setdefault(place.fused, []).append(Placed(place.offset, delta))
    embedding = new[layout.embedding]
    added = torch.arange(vocab, len(embedding))
    change = embedding[:vocab] - old[layout.embedding]
    packed = Packed(codec, tuple(change.shape), {}, {"delta": change})
    return ResidentVariant(
        digest="sha256:" + "0" * 64,
        vocab_size=len(embedding),
        linears={
            fused: StagedLinear(dense, KERNELS.stage(placed), reconstruct_from)  # type: ignore[arg-type]
            for fused, placed in parts.items()
        },
        vectors={name: new[name] for name in layout.vectors},
        embedding=EmbeddingDelta(added, embedding[added], packed, dense),  # type: ignore[arg-type]
        lm_head_rows=new["lm_head.weight"][vocab:] if len(added) else None,
        nbytes=0,
    )


Tuned = tuple[BaseModel, Any, list[Any]]  # the base, transformers' base, fine-tunes of it
MakeTuned = Callable[..., Tuned]


@pytest.fixture(scope="session")
def tuned_models(tiny_model_factory: Any) -> MakeTuned:
    """`make(config, added=(0, 0, 3))` -> base and one full fine-tune per entry, in float32."""

    def make(config: PreTrainedConfig, added: Sequence[int] = (0, 0, 3)) -> Tuned:
        directory: Path = tiny_model_factory(config, seed=8)
        load = AutoModelForCausalLM.from_pretrained
        base_model = load(directory, dtype=torch.float32, attn_implementation="eager")
        fine_tunes = []
        for seed, tokens in enumerate(added):
            model = load(directory, dtype=torch.float32, attn_implementation="eager")
            torch.manual_seed(20 + seed)
            if tokens:
                model.resize_token_embeddings(config.vocab_size + tokens, mean_resizing=False)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
            fine_tunes.append(model)
        return load_base(directory, "cpu", "float32"), base_model, fine_tunes

    return make


def sequences_of(vocabularies: Sequence[int], lengths: Sequence[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [
        torch.randint(0, v, (n,), generator=generator)
        for v, n in zip(vocabularies, lengths, strict=True)
    ]


CONFIGS: Mapping[str, Callable[[], PreTrainedConfig]] = {
    "llama-tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-untied-biases": lambda: LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "gemma3": lambda: Gemma3TextConfig(**SIZES, head_dim=16, sliding_window=6),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_mixed_batch_equals_each_fine_tune_in_transformers(
    case: str, tuned_models: MakeTuned, run_sequences: Any
) -> None:
    base, base_model, fine_tunes = tuned_models(CONFIGS[case]())
    variants = [
        as_variant(base, base_model, fine_tunes[0], "one"),
        as_variant(base, base_model, fine_tunes[1], "two", reconstruct_from=6),
        as_variant(base, base_model, fine_tunes[2], "one"),
    ]
    models = [base_model, *fine_tunes, fine_tunes[1]]
    order = [None, *variants, variants[1]]
    vocabularies = [120, 120, 120, 123, 120]
    sequences = sequences_of(vocabularies, (17, 9, 21, 14, 5))
    found = run_sequences(base, sequences, (4, 1, 8, 5, 5), order)
    for ids, model, vocab, ours in zip(sequences, models, vocabularies, found, strict=True):
        with torch.no_grad():
            expected = model(ids[None]).logits[0]
        assert (ours[:, :vocab] - expected).abs().max().item() <= 1e-4
        assert torch.isneginf(ours[:, vocab:]).all()


def test_a_request_alone_gives_the_logits_it_gives_in_a_mixed_batch(
    tuned_models: MakeTuned, run_sequences: Any
) -> None:
    base, base_model, fine_tunes = tuned_models(CONFIGS["llama-tied"]())
    variants = [None, *(as_variant(base, base_model, m, f"c{i}") for i, m in enumerate(fine_tunes))]
    sequences = sequences_of([120] * 4, (12, 20, 7, 16))
    mixed = run_sequences(base, sequences, (3, 5, 1, 16), variants)
    for ids, variant, together in zip(sequences, variants, mixed, strict=True):
        [alone] = run_sequences(base, [ids], (7,), [variant])
        torch.testing.assert_close(together[:, :120], alone[:, :120], atol=2e-5, rtol=0)


def test_reconstructed_rows_equal_fused_rows(tuned_models: MakeTuned, run_sequences: Any) -> None:
    base, base_model, fine_tunes = tuned_models(CONFIGS["llama-untied-biases"]())
    sequences = sequences_of([120] * 3, (20, 18, 11))
    logits = []
    for threshold in (None, 1, 8):
        variant = as_variant(base, base_model, fine_tunes[0], "one", threshold)
        logits.append(run_sequences(base, sequences, (8, 3, 9), [variant, None, variant]))
    for fused, rebuilt, both in zip(*logits, strict=True):
        torch.testing.assert_close(rebuilt, fused, atol=2e-5, rtol=0)
        torch.testing.assert_close(both, fused, atol=2e-5, rtol=0)


def test_a_variant_without_linears_changes_only_its_norms(
    tuned_models: MakeTuned, run_sequences: Any
) -> None:
    base, base_model, fine_tunes = tuned_models(CONFIGS["llama-tied"](), (0,))
    variant = as_variant(base, base_model, fine_tunes[0], "one")
    norms_only = replace(variant, linears={}, embedding=None)
    tuned, expected = fine_tunes[0].state_dict(), base_model
    changed = {name: tuned[name] for name in base.layout.vectors}
    before = {name: expected.state_dict()[name].clone() for name in changed}
    [ids] = sequences_of([120], (10,))
    expected.load_state_dict(changed, strict=False)
    with torch.no_grad():
        wanted = expected(ids[None]).logits[0]
    expected.load_state_dict(before, strict=False)
    ours, plain = run_sequences(base, [ids, ids], (4, 4), [norms_only, None])
    assert (ours - wanted).abs().max().item() <= 1e-4
    assert (plain - ours).abs().max().item() > 0.01


def test_replaced_rows_of_the_vocabulary_count_at_both_ends(
    tuned_models: MakeTuned, run_sequences: Any
) -> None:
    base, base_model, _ = tuned_models(CONFIGS["llama-tied"](), ())
    ids, rows = torch.tensor([3, 50]), torch.randn(2, 48)
    weight = base_model.get_input_embeddings().weight
    before = weight.detach()[ids].clone()
    variant = ResidentVariant(
        digest="sha256:" + "1" * 64,
        vocab_size=120,
        linears={},
        vectors={},
        embedding=EmbeddingDelta(ids, rows, None, None),
        lm_head_rows=rows,
        lm_head_row_ids=ids,
        nbytes=0,
    )
    prompt = torch.tensor([5, 3, 7, 50, 50, 9])
    with torch.no_grad():
        weight[ids] = rows
        expected = base_model(prompt[None]).logits[0]
        weight[ids] = before
    [found, plain] = run_sequences(base, [prompt, prompt], (2, 3), [variant, None])
    assert (found - expected).abs().max().item() <= 1e-4
    assert (plain - expected).abs().max().item() > 0.1


def test_a_variant_with_a_smaller_vocabulary_never_gives_tokens_beyond_it(
    tuned_models: MakeTuned, run_sequences: Any
) -> None:
    base, base_model, fine_tunes = tuned_models(CONFIGS["llama-tied"](), (0,))
    small = replace(as_variant(base, base_model, fine_tunes[0], "one"), vocab_size=100)
    [alone] = run_sequences(base, sequences_of([100], (6,)), (6,), [small])
    assert alone.shape == (6, 100)
    mixed = run_sequences(base, sequences_of([100, 120], (6, 6)), (6, 6), [small, None])
    assert torch.isneginf(mixed[0][:, 100:]).all()
    assert torch.isfinite(mixed[1]).all()
