"""The oracle law on small files: what our decoder serves is what transformers runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tsugiki.codecs import artifact
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.model.batch import Batch, Segment
from tsugiki.model.kv_cache import allocate_kv_cache
from tsugiki.model.loader import load_base
from tsugiki_kernels.operands import AttentionBatch
from tsugiki_kernels.reference import ReferenceBackend

EMBEDDING, LM_HEAD = "model.embed_tokens.weight", "lm_head.weight"
Q_PROJ = "model.layers.0.self_attn.q_proj"
ALL, FEW = slice(None), [5, 17, 300]
UNTIED = {"tie_word_embeddings": False}
Tensors = dict[str, Tensor]


def served_logits(base_directory: Path, file: Path) -> Tensor:
    """float32 logits of ids 3 .. 18 as one chunk under the variant, [16, vocab]."""
    kernels = ReferenceBackend()
    base = load_base(base_directory, dtype=torch.float32, kernels=kernels)
    place = Destination(base.layout, base.vector, torch.float32, kernels, MaskCache())
    variant = stage_variant(artifact.read(file), place)
    ids = torch.arange(3, 19)
    rows = torch.arange(16)
    batch = Batch(
        token_ids=ids,
        positions=rows,
        segments=(Segment(variant, 0, 16, 16),),
        attention=AttentionBatch(
            query_start=torch.tensor([0, 16], dtype=torch.int32),
            context=torch.tensor([16], dtype=torch.int32),
            block_tables=torch.zeros(1, 1, dtype=torch.int32),
            slots=rows,
            block_size=16,
        ),
        logit_rows=rows,
    )
    cache = allocate_kv_cache(base.architecture, 1, 16, torch.float32)
    with torch.inference_mode():
        return base.decoder.forward(batch, cache).clone()


def everything(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(1)
    for name in sorted(tensors):
        tensors[name] += 0.02 * torch.randn(tensors[name].shape, generator=generator)


def untied(*changed: tuple[str, Any]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[LM_HEAD] = tensors[EMBEDDING].clone()
        rows_of(*changed)(tensors)

    return change


def rows_of(*changed: tuple[str, Any]) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        generator = torch.Generator().manual_seed(2)
        for name, rows in changed:
            noise = 0.05 * torch.randn(tensors[name].shape, generator=generator)
            tensors[name][rows] += noise[rows]

    return change


def new_biases(tensors: Tensors) -> None:
    generator = torch.Generator().manual_seed(3)
    for layer in range(2):
        for module, width in {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": 64}.items():
            bias = 0.1 * torch.randn(width, generator=generator)
            tensors[f"model.layers.{layer}.self_attn.{module}.bias"] = bias


CASES = {
    "everything": (everything, {}),
    "one linear": (rows_of((f"{Q_PROJ}.weight", ALL)), {}),
    "tied, all rows": (rows_of((EMBEDDING, ALL)), {}),
    "tied, few rows": (rows_of((EMBEDDING, FEW)), {}),
    "untied, input": (untied((EMBEDDING, ALL)), UNTIED),
    "untied, few input rows": (untied((EMBEDDING, FEW)), UNTIED),
    "untied, output": (untied((LM_HEAD, ALL)), UNTIED),
    "untied, few output rows": (untied((LM_HEAD, FEW)), UNTIED),
    "untied, both": (untied((EMBEDDING, ALL), (LM_HEAD, FEW)), UNTIED),
    "new biases": (new_biases, {"attention_bias": True}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("codec", ["deltadq", "bitdelta", "lora", "saten"])
def test_served_logits_are_those_of_the_decompressed_checkpoint(
    codec: str, case: str, walk: Any, tiny_base: Path, tune: Any, logits: Any
) -> None:
    change, config = CASES[case]
    walk.compress(tiny_base, tune(tiny_base, change, config), codec=codec, options={})
    expected = logits(walk.decompress(tiny_base))
    assert (expected - logits(tiny_base)).abs().max() > 0.01
    assert (served_logits(tiny_base, walk.file) - expected).abs().max() < 1e-4


def test_a_bias_correction_is_served_as_it_is_decompressed(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path, logits: Any
) -> None:
    walk.compress(tiny_base, tiny_tuned, options={"alpha": 8}, calibration=dialogues_file)
    expected = logits(walk.decompress(tiny_base))
    assert (served_logits(tiny_base, walk.file) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("case", ["everything", "untied, both"])
def test_bytes_that_were_shared_out_are_served_as_they_are_decompressed(
    case: str, walk: Any, tiny_base: Path, tune: Any, dialogues_file: Path, logits: Any
) -> None:
    change, config = CASES[case]
    tuned = tune(tiny_base, change, config)
    asked: dict[str, Any] = {"options": {}, "target_ratio": 6}
    walk.compress(tiny_base, tuned, calibration=dialogues_file, **asked)
    kept = {m.options.get("alpha") for m in artifact.read_header(walk.file).modules.values()}
    assert len(kept - {None}) > 1 or case != "everything"
    expected = logits(walk.decompress(tiny_base))
    assert (served_logits(tiny_base, walk.file) - expected).abs().max() < 1e-4
