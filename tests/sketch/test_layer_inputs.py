"""Rows that say what an error of a weight costs: of values what attention makes of them."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tsugiki.compress_base.layer_inputs import LayerInputs

HEADS, TOKENS, WIDTH = 4, 24, 32


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def seen(model: LlamaForCausalLM) -> Iterator[dict[str, Tensor]]:
    """What o_proj is given."""
    found: dict[str, Tensor] = {}
    layer = model.model.layers[0]

    def see(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found["attended"] = inputs[0][0]

    handle = layer.self_attn.o_proj.register_forward_pre_hook(see)
    yield found
    handle.remove()


@torch.no_grad()
def rows(model: LlamaForCausalLM, ids: Tensor) -> dict[tuple[str, ...], Tensor]:
    """What an error of the layer's linears costs."""
    with LayerInputs(model.model.layers[0]) as inputs:
        model(ids)
        return inputs.rows()


@torch.no_grad()
def test_an_error_of_values_costs_what_attention_makes_of_it(
    model: LlamaForCausalLM, seen: dict[str, Tensor]
) -> None:
    ids = torch.arange(TOKENS)[None]
    weighed = rows(model, ids)["self_attn.v_proj.weight",]
    assert weighed.shape == (HEADS * TOKENS, WIDTH)  # of fewer heads than six every query
    before = seen["attended"].clone()
    per_head = 0.1 * torch.randn(WIDTH // HEADS, WIDTH)  # the same for both heads of values
    model.model.layers[0].self_attn.v_proj.weight += torch.cat([per_head, per_head])
    model(ids)
    change = seen["attended"] - before
    expected = (weighed @ per_head.T).square().sum()
    assert float(change.square().sum()) == pytest.approx(float(expected), rel=1e-4)


def test_linears_of_one_input_share_their_rows(model: LlamaForCausalLM) -> None:
    found = rows(model, torch.arange(TOKENS)[None])
    assert {names for names in found if len(names) > 1} == {
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight"),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    }
