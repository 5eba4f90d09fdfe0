"""What noise in a matrix costs, and how bytes are shared out by it."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tsugiki.codecs import artifact
from tsugiki.compress.budget import shared_dropout
from tsugiki.compress.dialogues import Dialogue
from tsugiki.compress.evaluate import evaluate
from tsugiki.compress.hf_model import load_model
from tsugiki.compress.job import open_base, open_full
from tsugiki.compress.progress import Progress
from tsugiki.compress.sensitivity import MOST, noise_costs, shares

QUIET = Progress(quiet=True)
LAYERS = "model.layers.1"
DOWN, VALUE = f"{LAYERS}.mlp.down_proj.weight", f"{LAYERS}.self_attn.v_proj.weight"
DRAWS = 24


def dialogues(count: int) -> list[Dialogue]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 500, (count, 24), generator=generator).tolist()
    return [Dialogue(tuple(row), 6, scored=False) for row in ids]


def test_the_cost_of_noise_is_the_divergence_that_noise_makes(
    tiny_base: Path, tiny_tuned: Path
) -> None:
    pairs = open_full(open_base(tiny_base), tiny_tuned).pairs
    texts = dialogues(12)
    said = noise_costs(load_model(tiny_tuned), texts * 6, [DOWN, VALUE], pairs.base_tensor)
    models = {"tuned": load_model(tiny_tuned), "variant": load_model(tiny_tuned)}
    generator = torch.Generator().manual_seed(0)
    for name in (DOWN, VALUE):
        parameter = models["variant"].get_parameter(name)
        exact = parameter.detach().clone()
        delta = exact - pairs.base_tensor(name).float()
        divergences = []
        for _ in range(DRAWS):
            with torch.no_grad():
                parameter.copy_(exact + delta * torch.randn(delta.shape, generator=generator))
            divergences.append(evaluate(models, texts, QUIET).kl.value)
        with torch.no_grad():
            parameter.copy_(exact)
        assert sum(divergences) / DRAWS == pytest.approx(said[name], rel=0.2)


def test_a_matrix_that_is_not_named_costs_nothing_and_keeps_no_gradient(tiny_tuned: Path) -> None:
    model = load_model(tiny_tuned)
    found = noise_costs(model, dialogues(1), [VALUE], lambda name: torch.zeros(1, 1))
    assert set(found) == {VALUE}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_shares_follow_the_root_of_the_cost_of_a_parameter_and_take_what_even_ones_take() -> None:
    sizes = {"a": 1000, "b": 1000, "c": 4000}
    found = shares({"a": 1.0, "b": 4.0, "c": 4.0}, sizes)
    assert found["b"] == 2 * found["a"]
    assert found["c"] == found["a"]
    assert sum(found[k] * sizes[k] for k in sizes) == pytest.approx(6000, rel=0.1)


def test_shares_are_bounded_and_even_where_nothing_is_known() -> None:
    sizes = {"a": 10, "b": 10_000_000}
    assert shares({"a": 1.0, "b": 1e-9}, sizes)["a"] == MOST
    assert shares({"a": 1.0, "b": 0.0}, sizes)["b"] == 1 / MOST
    assert shares({"a": 0.0, "b": 0.0}, sizes) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("share", [0.25, 0.5, 2.0, 4.0])
def test_a_share_of_the_survivors_is_kept_within_what_a_row_allows(share: float) -> None:
    taken = shared_dropout({"bits": 1, "alpha": 32, "group_size": 64}, share, 576)
    assert 32 / taken["alpha"] == pytest.approx(share, rel=0.15)
    assert taken["bits"] == 1
    assert shared_dropout({"alpha": 512, "group_size": 512}, share, 576)["group_size"] <= 576


def test_a_size_goal_with_calibration_shares_bytes_out_and_is_met(
    walk: Any, tiny_base: Path, tiny_tuned: Path, dialogues_file: Path
) -> None:
    asked: dict[str, Any] = {"options": {}, "target_ratio": 10}
    report = walk.compress(tiny_base, tiny_tuned, calibration=dialogues_file, **asked)
    modules = artifact.read_header(walk.file).modules.values()
    assert len({m.options["alpha"] for m in modules if m.codec == "deltadq"}) > 3
    assert 10 <= report.honest_ratio < 10.5
    assert report.paper_ratio is not None
    assert report.paper_ratio > report.honest_ratio
    walk.compress(tiny_base, tiny_tuned, **asked)
    modules = artifact.read_header(walk.file).modules.values()
    assert len({m.options["alpha"] for m in modules if m.codec == "deltadq"}) == 1
