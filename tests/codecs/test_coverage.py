"""What a file changes is counted from what it stores: zeros are declared, but change nothing."""

from dataclasses import replace

import pytest
import torch

from tests.codecs.conftest import RECIPES, make_example
from tsugiki.codecs import CODECS
from tsugiki.codecs.base import Packed
from tsugiki.codecs.coverage import check_coverage, coverage, declared, part_of
from tsugiki.errors import InvalidArtifact

Q, NORM = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def with_parts(packed: Packed, **tensors: torch.Tensor) -> Packed:
    return replace(packed, tensors={**packed.tensors, **tensors})


def with_options(packed: Packed, **options: object) -> Packed:
    return replace(packed, options={**packed.options, **options})


def without_bias(packed: Packed) -> Packed:
    return with_options(packed, bias_scale=0.0) if packed.options.get("bias_bits") else packed


def zeroed(packed: Packed) -> list[Packed]:
    """The same module made to change nothing, in every way that its codec has."""
    plain, parts = without_bias(packed), packed.tensors
    if packed.codec == "deltadq":
        flat = [with_parts(plain, step=torch.zeros_like(parts["step"]))]
        # every code stands for zero: low plane and high plane of the code 0, grid point 0
        planes = {name: torch.zeros_like(parts[name]) for name in ("codes", "part") & parts.keys()}
        return [
            *flat,
            with_options(plain, gain=0.0),
            with_options(with_parts(plain, **planes), zero=0.0),
        ]
    if packed.codec == "bitdelta":
        return [with_options(plain, gain=0.0), with_parts(plain, scale=parts["scale"] * 0)]
    if packed.codec == "lora":
        disjoint = {"a": parts["a"].clone(), "b": parts["b"].clone()}
        disjoint["a"][1:] = 0
        disjoint["b"][:, :1] = 0
        zero_b = with_parts(packed, b=torch.zeros_like(parts["b"]))
        return [zero_b, with_options(packed, scale=0.0), with_parts(packed, **disjoint)]
    if packed.codec == "saten":
        scaled = [f"{of}_steps" if f"{of}_steps" in parts else f"{of}s" for of in ("core", "value")]
        nothing = {name: torch.zeros_like(parts[name]) for name in scaled}
        gains = with_options(packed, core_gain=0.0, value_gain=0.0)
        return [gains, with_parts(packed, **nothing)]
    return [with_parts(packed, values=torch.zeros_like(parts["values"]))]


def is_zero(packed: Packed) -> bool:
    """By the oracle: everything that is added, spelled out."""
    dense = CODECS[packed.codec].effective(torch.zeros(packed.shape), packed)
    return not bool(dense.weight.any()) and (dense.bias is None or not bool(dense.bias.any()))


def test_a_fine_tune_changes_and_its_zeros_do_not(recipe: str) -> None:
    packed = make_example(recipe).packed
    codec = CODECS[packed.codec]
    assert codec.changes(packed)
    assert not is_zero(packed)
    for nothing in zeroed(packed):
        codec.validate(nothing)
        assert is_zero(nothing)
        assert not codec.changes(nothing)


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name.startswith("deltadq")])
def test_one_code_off_the_grid_point_of_zero_is_a_change(recipe: str) -> None:
    packed = without_bias(make_example(recipe, shape=(1100, 52)).packed)
    planes = [name for name in ("codes", "part") if name in packed.tensors]
    still = {name: torch.zeros_like(packed.tensors[name]) for name in planes}
    packed = with_options(with_parts(packed, **still), zero=0.0)
    assert not CODECS["deltadq"].changes(packed)
    still[planes[0]][-1, 0] = 1  # the first row of the last tile
    assert CODECS["deltadq"].changes(packed)
    assert not is_zero(packed)


@pytest.mark.parametrize("recipe", ["deltadq", "bitdelta"])
def test_a_bias_alone_is_a_change(recipe: str) -> None:
    packed = with_options(make_example(recipe).packed, gain=0.0)
    assert packed.options["bias_bits"]
    assert CODECS[packed.codec].changes(packed)


def modules() -> dict[str, Packed]:
    """A linear, a norm, replaced rows, an lm_head that stays the base's, and a linear of zeros."""
    dense = CODECS["dense"]
    table = torch.randn(20, 8)
    moved = table.clone()
    moved[[3, 7]] += 1
    norm = dense.compress(torch.ones(8), torch.full((8,), 1.5), None, {"name": NORM})
    rows = dense.compress(table, moved, None, {"mode": "rows", "name": f"{EMBED}:rows"})
    zero = CODECS["deltadq"].zero((16, 8))
    return {
        Q: make_example("bitdelta", (16, 8), name=Q).packed,
        NORM: norm,
        f"{EMBED}:rows": rows,
        HEAD: replace(dense.zero((20, 8)), name=HEAD),
        "model.layers.0.mlp.up_proj.weight": zero,
    }


def test_coverage_tells_what_is_declared_from_what_changes() -> None:
    found = coverage(modules())
    assert (found.modules_declared, found.parameters_declared) == (5, 16 * 8 * 2 + 8 + 2 * 8)
    assert (found.modules, found.parameters) == (3, 16 * 8 + 8 + 2 * 8)
    assert found.by_codec == {"bitdelta": 128, "dense": 24}
    assert found.by_part == {"attention": 128, "norms": 8, "embedding": 16}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.layers.0.self_attn.k_norm.weight", "norms"),
        ("model.layers.0.post_attention_layernorm.weight", "norms"),
        ("model.layers.0.self_attn.q_proj.bias", "attention"),
        ("model.layers.0.mlp.down_proj.weight", "mlp"),
        ("lm_head.weight:rows", "lm_head"),
        ("model.embed_tokens.weight", "embedding"),
        ("something.else", "other"),
    ],
)
def test_parts_are_told_by_canonical_names(name: str, part: str) -> None:
    assert part_of(name) == part


def test_less_than_declared_is_refused_with_both_counts() -> None:
    found = coverage(modules())
    check_coverage({}, found)
    check_coverage({"coverage": declared(found)}, found)
    more = {"modules": 4, "parameters": found.parameters}
    with pytest.raises(InvalidArtifact, match=r"declares 4 changed modules .* changes 3 with 152"):
        check_coverage({"coverage": more}, found)
    with pytest.raises(InvalidArtifact, match="expected counts modules, parameters"):
        check_coverage({"coverage": {"modules": "all"}}, found)


def test_only_zeros_are_refused() -> None:
    nothing = {name: packed for name, packed in modules().items() if "mlp" in name or name == HEAD}
    with pytest.raises(InvalidArtifact, match="changes no parameter of the base: 2 modules"):
        check_coverage({}, coverage(nothing))
