"""What compression promises: gain, unbiasedness, faithfulness to the papers, refusals by name."""

import math

import pytest
import torch

from tsugiki.codecs import CODECS
from tsugiki.codecs.base import ModuleStats, Packed
from tsugiki.codecs.masks import Mask, kept_columns
from tsugiki.errors import CompressionRefused, InvalidArtifact

DELTADQ, BITDELTA, LORA, DENSE = (CODECS[n] for n in ("deltadq", "bitdelta", "lora", "dense"))


def random_delta(rows: int = 64, columns: int = 96, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.01


def pack(delta, codec=DELTADQ, stats=None, **options) -> Packed:
    return codec.compress(torch.zeros_like(delta), delta, stats, {"name": "m", **options})


def unpack(packed: Packed) -> torch.Tensor:
    return CODECS[packed.codec].effective(torch.zeros(packed.shape), packed).weight


def gain(approximation: torch.Tensor, delta: torch.Tensor) -> float:
    return float((approximation * delta).sum() / (delta * delta).sum())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("rows_per_mask", [1, 16])
def test_deltadq_reproduces_the_delta_with_gain_one(bits, rows_per_mask):
    delta = random_delta()
    packed = pack(delta, alpha=8, bits=bits, rows_per_mask=rows_per_mask)
    assert gain(unpack(packed), delta) == pytest.approx(1, abs=1e-5)


def test_bitdelta_has_gain_one_when_matched_and_the_papers_scale_when_not():
    delta = random_delta()
    assert gain(unpack(pack(delta, BITDELTA)), delta) == pytest.approx(1, abs=1e-5)
    plain = unpack(pack(delta, BITDELTA, gain_matching=False))
    expected = delta.sign() * delta.abs().mean(dim=1, keepdim=True)
    assert torch.allclose(plain, expected, rtol=2**-10)


def test_survivors_stand_where_the_mask_says_and_nowhere_else():
    packed = pack(random_delta(), alpha=8, bits=4, rows_per_mask=16, seed=9)
    kept = torch.from_numpy(kept_columns(Mask(9, "m", 64, 96, 8, 64, 16)).astype("int64"))
    where = torch.zeros(4, 96, dtype=torch.bool).scatter_(1, kept, True)
    assert torch.equal(unpack(packed) != 0, where.repeat_interleave(16, dim=0))


def test_the_average_over_seeds_tends_to_the_delta():
    delta = random_delta(16, 32)
    rounds, alpha = 150, 4
    total = sum(unpack(pack(delta, alpha=alpha, bits=8, seed=s)) for s in range(rounds))
    error = (total / rounds - delta).norm() / delta.norm()
    assert error < 1.3 * math.sqrt((alpha - 1) / rounds)


def test_minmax_is_the_quantizer_of_the_paper():
    delta = random_delta()
    packed = pack(delta, alpha=8, bits=4, grid="minmax", group_size=8, rows_per_mask=1)
    values = unpack(packed)
    kept = values != 0
    survivors = delta[kept] * 8
    step = packed.options["gain"]
    low, high = float((delta * 8)[kept].min()), float((delta * 8)[kept].max())
    assert step == pytest.approx((high - low) / 15, rel=0.02)
    assert packed.options["zero"] == round(-low / step) or not kept.all()
    assert float((values[kept] - survivors).abs().max()) <= 0.51 * step


def test_parts_are_a_relabelling_and_save_nothing():
    delta = random_delta()
    whole = pack(delta, alpha=8, bits=4)
    for parts in (2, 4, 8, 16):
        split = pack(delta, alpha=8, bits=4, parts=parts)
        assert torch.equal(unpack(split), unpack(whole))
        assert split.nbytes >= whole.nbytes


def test_more_bits_bring_the_survivors_closer():
    delta = random_delta()
    errors = [float((unpack(pack(delta, alpha=1, bits=b)) - delta).norm()) for b in (1, 2, 3, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01 * float(delta.norm())


@pytest.mark.parametrize(("codec", "options"), [(DELTADQ, {"alpha": 4}), (BITDELTA, {})])
def test_the_bias_correction_restores_the_mean_output(codec, options):
    delta, mean = random_delta(), torch.randn(96)
    stats = ModuleStats(mean, torch.ones(96), 10)
    packed = pack(delta, codec, stats, **options)
    dense = codec.effective(torch.zeros_like(delta), packed)
    lost = (delta - dense.weight) @ mean
    assert float((lost - dense.bias).norm()) < 0.1 * float(lost.norm())
    assert pack(delta, codec, stats, bias_bits=0, **options).options["bias_bits"] == 0


@pytest.mark.parametrize(("codec", "options"), [(DELTADQ, {"alpha": 1}), (BITDELTA, {})])
def test_entries_without_change_are_dithered_to_no_common_side(codec, options):
    delta = torch.zeros(32, 64)
    delta[:, ::8] = 0.01
    values = unpack(pack(delta, codec, **options))
    unchanged = values[delta == 0]
    assert float(unchanged.mean().abs()) < 0.02 * float(unchanged.abs().mean())


@pytest.mark.parametrize("grid", ["minmax", "symmetric"])
def test_a_module_that_did_not_change_packs_to_zero(grid):
    zeros = torch.zeros(20, 32)
    assert torch.equal(unpack(pack(zeros, alpha=4, grid=grid)), zeros)
    assert torch.equal(unpack(pack(zeros, BITDELTA)), zeros)
    assert torch.equal(unpack(pack(zeros, LORA, rank=2)), zeros)
    assert torch.equal(unpack(pack(zeros, DENSE, mode="delta", dtype="int8")), zeros)


def test_minmax_of_equal_survivors_is_exact():
    for value in (0.5, -0.5):
        delta = torch.full((4, 16), value)
        values = unpack(pack(delta, alpha=4, group_size=4, bits=2, grid="minmax"))
        assert values[values != 0].tolist() == [4 * value] * 16


def test_lora_keeps_the_largest_singular_values():
    delta = random_delta()
    u, s, v = torch.linalg.svd(delta)
    best = (u[:, :5] * s[:5]) @ v[:5]
    packed = pack(delta, LORA, rank=5, dtype="float32")
    assert torch.allclose(unpack(packed), best, atol=1e-6)


def test_a_large_matrix_gets_nearly_the_best_low_rank_part_and_always_the_same():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(1100, 8, generator=generator) @ torch.randn(8, 1030, generator=generator)
    delta = low + 0.01 * torch.randn(1100, 1030, generator=generator)
    first = pack(delta, LORA, rank=8, dtype="float32")
    assert float((unpack(first) - low).norm()) < 0.01 * float(low.norm())
    again = pack(delta, LORA, rank=8, dtype="float32")
    assert torch.equal(first.tensors["a"], again.tensors["a"])


def test_dense_picks_the_smallest_dtype_that_is_exact():
    for values, dtype in (
        ([1.5, 2.0], "bfloat16"),
        ([1.0009765625], "float16"),
        ([0.1], "float32"),
    ):
        packed = pack(torch.tensor(values), DENSE)
        assert packed.options["dtype"] == dtype
        assert unpack(packed).tolist() == torch.tensor(values).tolist()


def test_dense_rows_replace_and_extend():
    base = torch.arange(12.0).view(4, 3)
    tuned = torch.cat([base, torch.full((2, 3), 7.0)])
    tuned[1] += 1
    packed = DENSE.compress(base, tuned, None, {"mode": "rows", "name": "e:rows"})
    DENSE.validate(packed)
    assert packed.tensors["ids"].tolist() == [1, 4, 5]
    assert torch.equal(DENSE.effective(base, packed).weight, tuned)


def test_rows_in_disorder_are_refused():
    packed = DENSE.compress(torch.zeros(2, 3), torch.ones(4, 3), None, {"mode": "rows"})
    for ids in ([0, 2, 1, 3], [0, 1, 1, 3], [-1, 0, 1, 2], [0, 1, 2, 4]):
        packed.tensors["ids"][:] = torch.tensor(ids)
        with pytest.raises(InvalidArtifact, match="ascending"):
            DENSE.validate(packed)


@pytest.mark.parametrize(
    ("codec", "options", "message"),
    [
        (DELTADQ, {"bits": 0}, "'bits' is 0"),
        (DELTADQ, {"bits": 9}, "'bits' is 9"),
        (DELTADQ, {"alpha": 97}, "'alpha' is 97; expected an integer in 1..96"),
        (DELTADQ, {"alpha": 0}, "'alpha' is 0"),
        (DELTADQ, {"alpha": 2.5}, "'alpha' is 2.5"),
        (DELTADQ, {"alpha": 16, "group_size": 8}, "'group_size' is 8"),
        (DELTADQ, {"parts": 3, "bits": 4}, "'parts' is 3"),
        (DELTADQ, {"parts": 4, "bits": 1}, "'parts' is 4"),
        (DELTADQ, {"rows_per_mask": 0}, "'rows_per_mask' is 0"),
        (DELTADQ, {"grid": "log"}, "'grid' is 'log'; expected one of minmax, symmetric"),
        (DELTADQ, {"bias_bits": 1}, "'bias_bits' is 1"),
        (DELTADQ, {"seed": -1}, "'seed' is -1"),
        (DELTADQ, {"bit": 4}, r"\['bit'\] are not known"),
        (BITDELTA, {"bias_bits": 9}, "'bias_bits' is 9"),
        (LORA, {"rank": 65}, "'rank' is 65; expected an integer in 1..64"),
        (LORA, {"dtype": "int4"}, "'dtype' is 'int4'"),
        (DENSE, {"mode": "rows"}, "no changed row"),
        (DENSE, {"mode": "sparse"}, "'mode' is 'sparse'"),
    ],
)
def test_impossible_options_are_refused_by_name(codec, options, message):
    base = random_delta()
    stats = ModuleStats(torch.zeros(96), torch.ones(96), 1)
    with pytest.raises(CompressionRefused, match=message):
        codec.compress(base, base.clone(), stats, {"name": "m", **options})


@pytest.mark.parametrize("codec", [DELTADQ, BITDELTA, LORA, DENSE])
def test_values_and_shapes_that_have_no_difference_are_refused(codec):
    base = torch.zeros(16, 32)
    options = {"name": "layer.weight", **({"mode": "delta"} if codec is DENSE else {})}
    broken = base.clone()
    broken[3, 4] = float("nan")
    with pytest.raises(CompressionRefused, match=r"layer\.weight holds NaN"):
        codec.compress(base, broken, None, options)
    with pytest.raises(CompressionRefused, match=r"layer\.weight has shape \[17, 32\]"):
        codec.compress(base, torch.zeros(17, 32), None, options)


def test_deltadq_refuses_more_columns_than_16_bits_name():
    wide = torch.zeros(1, 65537)
    with pytest.raises(CompressionRefused, match="65537 columns"):
        pack(wide)


def test_dense_refuses_values_beyond_its_dtype():
    with pytest.raises(CompressionRefused, match="float16"):
        pack(torch.tensor([1e6]), DENSE, dtype="float16")
