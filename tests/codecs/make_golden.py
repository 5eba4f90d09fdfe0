"""Make the golden files of a new codec or layout: `python tests/codecs/make_golden.py`.

Existing files are never touched: they pin version 1 of the format. Beside each variant file lies
what it means, `*.expected.safetensors`: `<module>#values`, `#bias`, `#ids`, all of them exact.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tsugiki.codecs import CODECS
from tsugiki.codecs.artifact import ArtifactSpec, BaseRef, write
from tsugiki.codecs.base import ModuleStats, Packed
from tsugiki.codecs.dense import values
from tsugiki.codecs.lora import low_rank
from tsugiki.codecs.sketch import changes_of, pack
from tsugiki_kernels.codebooks import IndexMap

GOLDEN = Path(__file__).parent / "golden"
BASE = BaseRef("golden", "LlamaForCausalLM", "sha256:" + "0123456789abcdef" * 4)
Q = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.0.mlp.down_proj.weight"
UP = "model.layers.0.mlp.up_proj.weight"
GATE = "model.layers.0.mlp.gate_proj.weight"
EMBED = "model.embed_tokens.weight"
TEXT = {
    "chat_template": '{% for m in messages %}{{ m["content"] }}\n{% endfor %}é',
    "eos_token_ids": [1, 7],
    "generation_defaults": {"temperature": 0.7, "top_k": 20},
    "added_tokens": [{"id": 12, "content": "<|tool|>", "special": True}],
    "vocab_size": 13,
}


def compressed(name: str, shape: tuple[int, ...], codec: str, **options: Any) -> Packed:
    """A random change, packed; with statistics where a bias correction is asked for."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    base = torch.randn(shape, generator=generator)
    tuned = base + 0.02 * torch.randn(shape, generator=generator)
    mean = torch.randn(shape[-1], generator=generator)
    stats = ModuleStats(mean, mean.square(), 64) if options.get("bias_bits") else None
    return CODECS[codec].compress(base, tuned, stats, {**options, "name": name})


def integers(name: str, shape: tuple[int, int], rank: int, dtype: torch.dtype) -> Packed:
    """A low-rank module of small whole numbers: its product is exact in any order of sums."""
    generator = torch.Generator().manual_seed(rank)
    a = torch.randint(-4, 5, (rank, shape[1]), generator=generator).to(dtype)
    b = torch.randint(-4, 5, (shape[0], rank), generator=generator).to(dtype)
    return low_rank(name, a, b, 0.125)


def trained(name: str, shape: tuple[int, int], **options: Any) -> Packed:
    """A module of saten whose cores are small multiples of a power of two: T is exact in any order
    of sums."""
    packed = compressed(name, shape, "saten", **options)
    tensors = dict(packed.tensors)
    if "core_steps" in tensors:
        tensors["core_steps"] = torch.ones_like(tensors["core_steps"])
    elif "cores" in tensors:
        tensors["cores"] = (8 * tensors["cores"]).round()
    return replace(packed, tensors=tensors, options={**packed.options, "core_gain": 0.25})


def codebooks(name: str, bits: int, groups: int, value_bits: int) -> Packed:
    """A module of sketch: what is added to random codebooks of a base of 40 inputs."""
    index = IndexMap((7, 40), bits, groups, torch.empty(0, dtype=torch.uint8))
    generator = torch.Generator().manual_seed(value_bits)
    added = 0.02 * torch.randn(index.codebook_shape, generator=generator)
    return pack(added, index, value_bits, name)


def rows() -> Packed:
    """Row 3 replaced and row 12 added to an embedding of 12 rows."""
    base = torch.arange(48.0).view(12, 4)
    tuned = torch.cat([base, torch.tensor([[0.5, -1.25, 3.0, 100.0]])])
    tuned[3] = -tuned[3]
    return CODECS["dense"].compress(base, tuned, None, {"mode": "rows", "name": f"{EMBED}:rows"})


def unchanged(name: str, shape: tuple[int, ...]) -> Packed:
    return Packed("dense", shape, {"mode": "none"}, {}, name)


def files() -> dict[str, tuple[ArtifactSpec, list[Packed]]]:
    """Every golden file: what it says beside its modules, and the modules."""
    norm = compressed("model.norm.weight", (52,), "dense", mode="delta", dtype="int8")
    tile: dict[str, Any] = {"alpha": 4, "group_size": 16, "seed": 2**63 + 11, "bias_bits": 6}
    odd: dict[str, Any] = {"alpha": 5, "bits": 3, "group_size": 15, "rows_per_mask": 8}
    paper: dict[str, Any] = {"alpha": 8, "bits": 4, "grid": "minmax", "rows_per_mask": 1}
    dense = [
        compressed("a.weight", (3, 5), "dense", mode="delta", dtype="float32"),
        compressed("b.bias", (5,), "dense", mode="delta", dtype="float16"),
        compressed("c.bias", (4,), "dense", mode="replace", dtype="bfloat16"),
        unchanged("lm_head.weight", (12, 4)),
        rows(),
    ]
    return {
        "deltadq-tile": (
            spec("deltadq"),
            [compressed(n, (40, 52), "deltadq", **tile) for n in (Q, DOWN)] + [norm],
        ),
        "deltadq-paper": (
            spec("deltadq", provenance={"seed": "fixed"}),
            [compressed(Q, (12, 32), "deltadq", group_size=16, **paper)],
        ),
        "deltadq-parts": (
            spec("deltadq"),
            [
                compressed(Q, (20, 47), "deltadq", parts=2, rows_per_step=7, **odd),
                compressed(DOWN, (20, 47), "deltadq", parts=8, rows_per_step=16, **odd),
            ],
        ),
        "deltadq-8-bit": (
            spec("deltadq"),
            [compressed(Q, (18, 24), "deltadq", alpha=3, bits=8, group_size=12, rows_per_mask=4)],
        ),
        "bitdelta": (
            spec("bitdelta"),
            [
                compressed(Q, (9, 21), "bitdelta", bias_bits=5),
                compressed(DOWN, (9, 24), "bitdelta"),
            ],
        ),
        "lora": (
            spec("lora"),
            [
                integers(Q, (9, 12), 3, torch.bfloat16),
                integers(DOWN, (6, 5), 2, torch.float16),
                integers(UP, (5, 6), 1, torch.float32),
            ],
        ),
        "saten": (
            spec("saten"),
            [
                trained(Q, (24, 36), rank=3, density=0.1, rows_per_step=5),
                trained(DOWN, (12, 20), modes="4x5 3x4", rank=4, pattern="2:4", value_bits=8),
                trained(
                    UP,
                    (12, 20),
                    modes="vector",
                    core_bits=16,
                    value_bits=16,
                    density=0.3,
                ),
                compressed(GATE, (9, 30), "saten", rank=0, density=0.01),
            ],
        ),
        "sketch": (
            spec("sketch"),
            [
                codebooks(Q, 4, 2, 8),
                codebooks(DOWN, 3, 5, 4),
                codebooks(UP, 2, 1, 16),
                Packed("sketch", (7, 40), {"value_bits": 0}, {}, GATE),
            ],
        ),
        "dense-and-text": (
            spec("dense", text=TEXT, probe={"prompt_ids": [1, 5], "greedy_ids": [4, 12, 1]}),
            dense,
        ),
    }


def spec(codec: str, **fields: Any) -> ArtifactSpec:
    return ArtifactSpec(codec=codec, base=BASE, created_by="make_golden.py", **fields)


def meaning(packed: Packed) -> Mapping[str, Tensor]:
    """The module in full, as the project decodes it."""
    name, mode = packed.name, packed.options.get("mode")
    if mode == "none":
        return {}
    if mode == "rows":
        return {f"{name}#ids": packed.tensors["ids"], f"{name}#values": values(packed)}
    if packed.codec == "sketch":
        return {f"{name}#entries": changes_of(packed)} if packed.tensors else {}
    dense = CODECS[packed.codec].effective(torch.zeros(packed.shape), packed)
    found = {f"{name}#values": dense.weight}
    return found if dense.bias is None else {**found, f"{name}#bias": dense.bias}


def main() -> None:
    """Write what is missing."""
    GOLDEN.mkdir(exist_ok=True)
    for name, (fields, modules) in files().items():
        path = GOLDEN / f"{name}.safetensors"
        if path.exists():
            print(f"{path.name}: kept")
            continue
        header = write(path, fields, {packed.name: packed for packed in modules})
        expected = {key: t for packed in modules for key, t in meaning(packed).items()}
        save_file(expected, path.with_suffix(".expected.safetensors"), {"digest": header.digest})
        print(f"{path.name}: {header.file_bytes} bytes, {header.digest}")


if __name__ == "__main__":
    main()
