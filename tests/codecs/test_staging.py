"""A file on a base: what fits, what is refused, and where every module ends up."""

from dataclasses import replace

import pytest
import torch

from tsugiki.codecs import CODECS
from tsugiki.codecs.artifact import read, write
from tsugiki.codecs.base import FusedPart, Layout, ModuleStats
from tsugiki.codecs.fit import check_base
from tsugiki.codecs.masks import MaskCache
from tsugiki.codecs.staging import Destination, stage_variant
from tsugiki.errors import InvalidArtifact, WrongBase
from tsugiki_kernels.errors import BadArgument
from tsugiki_kernels.reference import ReferenceBackend

HIDDEN, VOCAB = 24, 30
Q, K, V = (f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv")
OUT = "model.layers.0.self_attn.o_proj.weight"
NORM, EMBED, HEAD = "model.norm.weight", "model.embed_tokens.weight", "lm_head.weight"
KERNELS = ReferenceBackend()

LINEARS = {
    Q: FusedPart("layers.0.qkv", 0, (24, HIDDEN)),
    K: FusedPart("layers.0.qkv", 24, (12, HIDDEN)),
    V: FusedPart("layers.0.qkv", 36, (12, HIDDEN)),
    OUT: FusedPart("layers.0.o", 0, (HIDDEN, HIDDEN)),
    HEAD: FusedPart("lm_head", 0, (VOCAB, HIDDEN)),
}
TIED = Layout(
    linears=LINEARS,
    biases={name.replace(".weight", ".bias"): name for name in (Q, K, V)},
    vectors={NORM: HIDDEN},
    embedding=EMBED,
    embedding_shape=(VOCAB, HIDDEN),
    tied=True,
    bias_allowed=frozenset((Q, K, V, OUT)),
)
UNTIED = replace(TIED, tied=False)


def base_tensor(name: str) -> torch.Tensor:
    """Any parameter of the base, the same on every call."""
    shapes = {NORM: (HIDDEN,), EMBED: (VOCAB, HIDDEN)}
    shapes |= {name: place.shape for name, place in LINEARS.items()}
    shapes |= {bias: LINEARS[weight].shape[:1] for bias, weight in TIED.biases.items()}
    return torch.randn(shapes[name], generator=torch.Generator().manual_seed(len(name)))


def moved(name: str) -> torch.Tensor:
    base = base_tensor(name)
    return base + 0.1 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1))


def change(name: str, codec: str = "deltadq", **options):
    """The parameter's fine-tune, packed."""
    wanted = {
        "deltadq": {"alpha": 2, "group_size": 8},
        "dense": {"mode": "delta"},
        "lora": {"rank": 4, "dtype": "float32"},
    }.get(codec, {})
    return CODECS[codec].compress(
        base_tensor(name), moved(name), None, {**wanted, **options, "name": name}
    )


def rows(table: str, tuned: torch.Tensor):
    return CODECS["dense"].compress(
        base_tensor(table), tuned, None, {"mode": "rows", "name": f"{table}:rows"}
    )


def place(**changes):
    usual = Destination(TIED, base_tensor, torch.float32, KERNELS, MaskCache())
    return replace(usual, **changes)


@pytest.fixture
def stage(spec, tmp_path):
    """Write the modules to a file and stage what is read from it."""

    def run(*modules, layout=TIED, vocab=None, dtype=torch.float32):
        text = None if vocab is None else {**TEXT, "vocab_size": vocab}
        path = tmp_path / "v.safetensors"
        write(path, spec(text=text), {packed.name: packed for packed in modules})
        return stage_variant(read(path), place(layout=layout, dtype=dtype))

    return run


TEXT = {
    "chat_template": None,
    "eos_token_ids": [1],
    "generation_defaults": {},
    "added_tokens": [],
}


def output(variant, fused: str, columns: int, kernels=KERNELS) -> torch.Tensor:
    """What the variant adds to each column of a fused linear for the unit inputs."""
    out = torch.zeros(HIDDEN, columns)
    linear = variant.linears[fused]
    kernels.apply(torch.eye(HIDDEN), out, [linear.staged], [(0, HIDDEN)])
    return out.T


def difference(packed) -> torch.Tensor:
    base = base_tensor(packed.name)
    return CODECS[packed.codec].effective(base, packed).weight - base


@pytest.mark.parametrize("codec", ["deltadq", "bitdelta", "lora", "dense"])
def test_parts_of_a_fused_linear_stand_at_their_offsets(stage, codec):
    q, v = change(Q, codec), change(V, codec)
    variant = stage(q, v)
    added = output(variant, "layers.0.qkv", 48)
    assert torch.allclose(added[:24], difference(q), atol=1e-5)
    assert torch.equal(added[24:36], torch.zeros(12, HIDDEN))
    assert torch.allclose(added[36:], difference(v), atol=1e-5)
    assert set(variant.linears) == {"layers.0.qkv"}


@pytest.mark.parametrize("codec", ["deltadq", "bitdelta", "lora", "dense"])
def test_a_bias_may_change_with_its_weight_or_alone(stage, codec):
    weight, bias = change(Q, codec), change(Q.replace("weight", "bias"), "dense")
    alone = change(K.replace("weight", "bias"), "dense", mode="replace", dtype="float32")
    variant = stage(weight, bias, alone)
    total = KERNELS.bias(variant.linears["layers.0.qkv"].staged, 48)
    assert torch.allclose(total[:24], difference(bias), atol=1e-6)
    assert torch.allclose(total[24:36], difference(alone), atol=1e-6)
    assert torch.equal(total[36:], torch.zeros(12))
    assert torch.allclose(
        output(variant, "layers.0.qkv", 48)[24:36], total[24:36, None].expand(12, 24)
    )


def test_a_bias_that_the_base_lacks_is_added(stage):
    new = CODECS["dense"].compress(
        torch.zeros(HIDDEN), torch.ones(HIDDEN), None, {"name": OUT.replace("weight", "bias")}
    )
    variant = stage(new)
    assert KERNELS.bias(variant.linears["layers.0.o"].staged, HIDDEN).tolist() == [1.0] * HIDDEN
    assert variant.linears["layers.0.o"].reconstruct_from is None


@pytest.mark.parametrize("options", [{"mode": "replace"}, {"dtype": "int8"}, {"dtype": "float16"}])
def test_vectors_are_held_whole_as_the_decoder_multiplies_with_them(stage, options):
    packed = change(NORM, "dense", **options)
    exact = CODECS["dense"].effective(base_tensor(NORM), packed).weight
    assert torch.allclose(exact, moved(NORM), atol=2e-3)
    rounded = stage(packed, dtype=torch.bfloat16).vectors[NORM]
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded, exact.bfloat16())
    plus_one = replace(TIED, vectors_in_float32=True)
    whole = stage(packed, dtype=torch.bfloat16, layout=plus_one).vectors[NORM]
    assert whole.dtype == torch.float32
    assert torch.equal(whole, exact)


def test_a_tied_embedding_changes_at_both_ends(stage):
    packed = change(EMBED)
    variant = stage(packed)
    ids = torch.tensor([4, 29])
    looked_up = variant.embedding.codec.lookup(variant.embedding.delta, ids)
    assert torch.allclose(looked_up, difference(packed)[ids], atol=1e-6)
    assert torch.allclose(output(variant, "lm_head", VOCAB), difference(packed), atol=1e-5)


def test_an_untied_base_keeps_its_two_ends_apart(stage):
    variant = stage(change(EMBED), layout=UNTIED)
    assert variant.embedding is not None
    assert "lm_head" not in variant.linears
    variant = stage(change(HEAD), layout=UNTIED)
    assert variant.embedding is None
    assert "lm_head" in variant.linears


def test_a_fine_tune_that_unties_stores_its_lm_head_apart(stage):
    embed, head = change(EMBED), change(HEAD, "bitdelta")
    variant = stage(embed, head)
    assert torch.allclose(output(variant, "lm_head", VOCAB), difference(head), atol=1e-5)
    unchanged = replace(CODECS["dense"].zero((VOCAB, HIDDEN)), name=HEAD)
    assert "lm_head" not in stage(embed, unchanged).linears


def test_replaced_rows_of_a_tied_embedding_count_at_both_ends(stage):
    tuned = base_tensor(EMBED)
    tuned[7] += 1
    variant = stage(rows(EMBED, tuned))
    assert variant.embedding.row_ids.tolist() == [7] == variant.lm_head_row_ids.tolist()
    assert torch.equal(variant.embedding.rows[0], tuned[7])
    assert variant.lm_head_rows is variant.embedding.rows
    assert variant.embedding.delta is None


def test_added_tokens_bring_rows_beside_a_compressed_change(stage):
    tuned = torch.cat([base_tensor(EMBED), torch.ones(2, HIDDEN)])
    variant = stage(change(EMBED), rows(EMBED, tuned), vocab=VOCAB + 2, dtype=torch.bfloat16)
    assert variant.vocab_size == VOCAB + 2
    assert variant.embedding.row_ids.tolist() == [VOCAB, VOCAB + 1]
    assert variant.embedding.delta is not None
    assert variant.lm_head_rows.dtype == torch.bfloat16


def test_an_untied_variant_needs_rows_on_both_sides(stage):
    tuned = torch.cat([base_tensor(EMBED), torch.ones(2, HIDDEN)])
    with pytest.raises(InvalidArtifact, match=r"lm_head\.weight:rows"):
        stage(rows(EMBED, tuned), vocab=VOCAB + 2, layout=UNTIED)
    variant = stage(rows(EMBED, tuned), rows(HEAD, tuned), vocab=VOCAB + 2, layout=UNTIED)
    assert VOCAB in variant.lm_head_row_ids.tolist()


def test_added_tokens_without_rows_are_refused(stage):
    with pytest.raises(InvalidArtifact, match="vocabulary is 32, 2 more"):
        stage(change(Q), vocab=VOCAB + 2)
    gap = torch.cat([base_tensor(EMBED), torch.ones(2, HIDDEN)])
    gap[:2] += 1  # two rows, as many as added tokens, but others
    packed = rows(EMBED, gap)
    kept = {part: tensor[:2] for part, tensor in packed.tensors.items()}
    with pytest.raises(InvalidArtifact, match="does not hold all rows"):
        stage(replace(packed, tensors=kept, options={**packed.options, "rows": 2}), vocab=VOCAB + 2)


@pytest.mark.parametrize("codec", ["deltadq", "bitdelta", "lora", "dense"])
def test_all_that_a_variant_owns_lies_in_one_extent(spec, tmp_path, kernels, codec):
    tuned = torch.cat([base_tensor(EMBED), torch.ones(2, HIDDEN)])
    modules = [change(n, codec) for n in (Q, OUT, EMBED)] + [rows(EMBED, tuned)]
    modules += [change(n, "dense") for n in (NORM, Q.replace("weight", "bias"))]
    text = {**TEXT, "vocab_size": VOCAB + 2}
    write(tmp_path / "v", spec(text=text), {packed.name: packed for packed in modules})
    content, extents = read(tmp_path / "v"), []

    def allocate(nbytes: int) -> torch.Tensor:
        extents.append(torch.full((nbytes,), 255, dtype=torch.uint8))
        return extents[-1]

    variant = stage_variant(content, place(kernels=kernels, allocate=allocate))
    before = [output(variant, "layers.0.qkv", 48, kernels), variant.vectors[NORM].clone()]
    for packed in content.modules.values():
        for tensor in packed.tensors.values():
            tensor.zero_()
    after = [output(variant, "layers.0.qkv", 48, kernels), variant.vectors[NORM]]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    (extent,) = extents
    assert variant.nbytes == len(extent)
    begin, end = extent.data_ptr(), extent.data_ptr() + len(extent)
    embedding = variant.embedding
    parts = [t for part, t in embedding.delta.tensors.items() if part != "columns"]
    for tensor in (variant.vectors[NORM], embedding.rows, variant.lm_head_rows, *parts):
        assert begin <= tensor.data_ptr() <= end - tensor.nbytes


def test_memory_that_kernels_could_not_read_is_refused(spec, tmp_path, kernels):
    write(tmp_path / "v", spec(), {Q: change(Q)})
    content = read(tmp_path / "v")
    for allocate in (
        lambda nbytes: torch.empty(nbytes + 1, dtype=torch.uint8)[1:],
        lambda nbytes: torch.empty(nbytes - 1, dtype=torch.uint8),
    ):
        with pytest.raises(BadArgument, match="aligned to 64"):
            stage_variant(content, place(kernels=kernels, allocate=allocate))


def test_a_resident_variant_is_no_larger_than_what_it_packs_and_a_record_each(
    spec, tmp_path, kernels
):
    base = torch.zeros(2048, 1024)
    layout = replace(TIED, linears={Q: FusedPart("layers.0.qkv", 0, tuple(base.shape))})
    for codec in ("deltadq", "bitdelta"):
        stats = ModuleStats(torch.ones(1024), torch.ones(1024), 10)
        tuned = torch.randn(base.shape, generator=torch.Generator().manual_seed(0))
        packed = CODECS[codec].compress(base, tuned, stats, {"name": Q})
        write(tmp_path / codec, spec(), {Q: packed})
        resident = place(layout=layout, dtype=torch.bfloat16, kernels=kernels)
        variant = stage_variant(read(tmp_path / codec), resident)
        assert packed.nbytes < variant.nbytes <= packed.nbytes + 256


def test_variants_of_one_seed_share_their_masks_until_the_last_of_them_is_gone(spec, tmp_path):
    masks, variants = MaskCache(), []
    for name in ("one", "two"):
        write(tmp_path / name, spec(), {Q: change(Q)})
        content = read(tmp_path / name)
        variants.append(stage_variant(content, place(masks=masks)))
    (one,), (two,) = (variant.shared for variant in variants)
    assert one == two
    assert one.nbytes == 2 * (24 // 16 + 1) * 12
    del one, two, variants[0]
    assert len(masks) == 1
    del variants[0]
    assert len(masks) == 0


def test_staging_offers_to_pause_before_each_linear(spec, tmp_path):
    write(tmp_path / "v", spec(), {Q: change(Q), K: change(K)})
    pauses, content = [], read(tmp_path / "v")
    variant = stage_variant(content, place(pause=lambda: pauses.append(1)))
    assert len(pauses) == len(variant.linears) == 1


def test_a_codec_of_its_own_for_a_part_of_a_fused_linear_is_refused(stage):
    with pytest.raises(InvalidArtifact, match=r"k_proj.* by 'bitdelta' .*q_proj.* by 'deltadq'"):
        stage(change(Q), change(K, "bitdelta"))


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (replace(change(Q), name="model.layers.9.self_attn.q_proj.weight"), "no such parameter"),
        (replace(change(Q), name=K), r"has shape \[24, 24\]; this base has \[12, 24\]"),
        (replace(change(NORM, "dense"), name=HEAD.replace("weight", "bias")), "no such parameter"),
        (change(Q, "dense", mode="replace"), "matrices need 'delta'"),
        (replace(rows(EMBED, moved(EMBED)), name=EMBED), "names that end in ':rows'"),
        (replace(change(EMBED), name=f"{EMBED}:rows"), "names that end in ':rows'"),
    ],
)
def test_modules_that_do_not_fit_the_base_are_refused_by_name(stage, packed, message):
    with pytest.raises(InvalidArtifact, match=message):
        stage(packed)


def test_the_fingerprint_decides_which_base_a_variant_runs_on(spec, tmp_path):
    header = write(tmp_path / "v", spec(), {Q: change(Q)})
    own, other = header.base.fingerprint, "sha256:" + "0" * 64
    check_base(header, own, TIED)
    with pytest.raises(WrongBase, match=f"{own}.*{other}.*--accept-derived"):
        check_base(header, other, TIED)
    check_base(header, other, TIED, accept_derived=own)
