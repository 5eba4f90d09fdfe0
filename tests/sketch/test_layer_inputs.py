"""Rows that say what an error of a weight costs: of values what attention makes of them, of what is
written to the residual stream what normalising leaves of it."""

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
def rows(model: LlamaForCausalLM, ids: Tensor) -> tuple[dict[tuple[str, ...], Tensor], Tensor]:
    """What the linears of the layer are weighed by, and the residual stream behind it."""
    behind: list[Tensor] = []
    layer = model.model.layers[0]
    handle = layer.register_forward_hook(lambda m, i, output: behind.append(output))
    with LayerInputs(layer) as inputs:
        model(ids)
        stream = behind[0][0] if isinstance(behind[0], tuple) else behind[0]
        found = inputs.weighed(stream[0])
    handle.remove()
    return found, stream[0]


@torch.no_grad()
def test_an_error_of_values_costs_what_attention_makes_of_it(
    model: LlamaForCausalLM, seen: dict[str, Tensor]
) -> None:
    ids = torch.arange(TOKENS)[None]
    weighed = rows(model, ids)[0]["self_attn.v_proj.weight",]
    assert weighed.shape == (HEADS * TOKENS // HEADS, WIDTH)
    before = seen["attended"].clone()
    per_head = 0.1 * torch.randn(WIDTH // HEADS, WIDTH)  # the same for both heads of values
    model.model.layers[0].self_attn.v_proj.weight += torch.cat([per_head, per_head])
    model(ids)
    change = (seen["attended"] - before)[::HEADS]
    expected = (weighed @ per_head.T).square().sum()
    assert float(change.square().sum()) == pytest.approx(float(expected), rel=1e-4)


def test_rows_written_to_the_residual_stream_count_by_its_inverse(
    model: LlamaForCausalLM, seen: dict[str, Tensor]
) -> None:
    found, stream = rows(model, torch.arange(TOKENS)[None])
    size = stream.square().mean(1, keepdim=True).sqrt()
    expected = seen["attended"] / size
    assert torch.allclose(found["self_attn.o_proj.weight",], expected, rtol=1e-4, atol=1e-7)


def test_linears_of_one_input_share_their_rows(model: LlamaForCausalLM) -> None:
    found, _ = rows(model, torch.arange(TOKENS)[None])
    assert {names for names in found if len(names) > 1} == {
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight"),
        ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    }
