"""The one decoder: Llama, Mistral, Qwen2, Qwen3 and Gemma 3 differ only in their `Architecture`.

Owns: the forward pass over a step's rows. Does not know: files, requests, sampling, codecs; where
variants change a linear is variant_linear.py, where they change the vocabulary embedding.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tsugiki.model.architecture import Activation, Architecture
from tsugiki.model.base_form import BaseForm
from tsugiki.model.batch import Batch
from tsugiki.model.embedding import embed, finish_logits
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.layout import FINAL_NORM
from tsugiki.model.norms import NormWeights, rms_normalise
from tsugiki.model.rope import cos_sin, rotate
from tsugiki.model.step_plan import Planner, StepNorms, StepPlan, select_rows
from tsugiki.model.variant_linear import Scratch, VariantLinear
from tsugiki_kernels.interface import AttentionBatch, KernelBackend

ACTIVATION_FUNCTIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True, slots=True)
class Weights:
    """A base on its device: fused linears by fused name, norm weights by canonical name."""

    embedding: Tensor  # [vocab, hidden], activation dtype
    linears: Mapping[str, BaseForm]  # "layers.3.qkv" ... and "lm_head"
    norms: Mapping[str, Tensor]  # as stored, activation dtype


@dataclass(frozen=True, slots=True)
class Layer:
    """The parts of one layer, looked up once."""

    index: int
    qkv: VariantLinear
    o: VariantLinear
    gate_up: VariantLinear
    down: VariantLinear
    prefix: str  # of its norms: "model.layers.3"
    rope: int  # which of the architecture's distinct ropes
    window: int | None


@dataclass(frozen=True, slots=True)
class Step:
    """What every layer of one forward shares."""

    plan: StepPlan
    norms: StepNorms | None  # None: the base's for all rows
    where: AttentionBatch
    cos_sin: Sequence[Tensor]  # per distinct rope: [2, rows, 1, head_dim]
    cache: KVCache


class Decoder:
    """A base's forward pass. Not safe for two threads at once: it keeps a plan and a scratch."""

    def __init__(
        self, architecture: Architecture, weights: Weights, kernels: KernelBackend
    ) -> None:
        self.architecture = architecture
        self.weights = weights
        self.kernels = kernels
        scratch = Scratch()
        self._linears = {
            name: VariantLinear(name, form, kernels, scratch)
            for name, form in weights.linears.items()
        }
        self._ropes = sorted(set(architecture.ropes))
        self._layers = [self._layer(i) for i in range(architecture.num_layers)]
        self._norms = NormWeights(weights.norms, architecture.norm_plus_one)
        self._planner = Planner(self._norms, weights.embedding.device)
        self._activation = ACTIVATION_FUNCTIONS[architecture.activation]
        device, scale = weights.embedding.device, architecture.embed_scale
        # Gemma rounds the scale to the embedding's dtype before it multiplies
        self._embed_scale = None if scale is None else weights.embedding.new_tensor(scale)
        self._inv_freq = [torch.tensor(rope.inv_freq, device=device) for rope in self._ropes]

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Logits of `batch.logit_rows`, and the rows' keys and values written into the cache.

        Returns float32 [logit rows, largest vocabulary of these rows]; a row's logits beyond its
        own vocabulary are -inf.
        """
        rows = len(batch.token_ids)
        plan, norms = self._planner.plan(batch.segments, rows)
        step = Step(plan, norms, batch.attention, self._rotations(batch.positions), cache)
        hidden = embed(batch.token_ids, self.weights.embedding, plan.variant_segments)
        if self._embed_scale is not None:
            hidden = hidden * self._embed_scale
        for layer in self._layers:
            hidden = self._layer_forward(layer, hidden, step)
        hidden = self._norm(FINAL_NORM, hidden, norms)
        return self._logits(hidden, batch)

    def forget_variants(self) -> None:
        """Drop the kept plan, which holds the variants of the last step in memory."""
        self._planner.forget()

    def _layer(self, i: int) -> Layer:
        return Layer(
            index=i,
            qkv=self._linears[f"layers.{i}.qkv"],
            o=self._linears[f"layers.{i}.o"],
            gate_up=self._linears[f"layers.{i}.gate_up"],
            down=self._linears[f"layers.{i}.down"],
            prefix=f"model.layers.{i}",
            rope=self._ropes.index(self.architecture.ropes[i]),
            window=self.architecture.windows[i],
        )

    def _rotations(self, positions: Tensor) -> list[Tensor]:
        dtype = self.weights.embedding.dtype
        return [
            cos_sin(inv_freq, rope.scaling, positions, dtype)
            for rope, inv_freq in zip(self._ropes, self._inv_freq, strict=True)
        ]

    def _layer_forward(self, layer: Layer, hidden: Tensor, step: Step) -> Tensor:
        prefix, sandwich = layer.prefix, self.architecture.sandwich_norms
        x = self._norm(f"{prefix}.input_layernorm.weight", hidden, step.norms)
        x = self._attention(layer, x, step)
        if sandwich:
            x = self._norm(f"{prefix}.post_attention_layernorm.weight", x, step.norms)
        hidden = hidden + x
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        x = self._norm(f"{prefix}.{before_mlp}.weight", hidden, step.norms)
        x = self._mlp(layer, x, step.plan)
        if sandwich:
            x = self._norm(f"{prefix}.post_feedforward_layernorm.weight", x, step.norms)
        return hidden + x

    def _attention(self, layer: Layer, x: Tensor, step: Step) -> Tensor:
        a = self.architecture
        qkv = layer.qkv.forward(x, step.plan.linear(layer.qkv.name))
        heads = qkv.view(len(x), a.num_heads + 2 * a.num_kv_heads, a.head_dim)
        qk, v = heads[:, : -a.num_kv_heads], heads[:, -a.num_kv_heads :]
        if a.qk_norm:
            qk = self._head_norms(layer, qk, step.norms)
        qk = rotate(qk, *step.cos_sin[layer.rope])
        q, k = qk[:, : a.num_heads], qk[:, a.num_heads :]
        cache = step.cache.layers[layer.index]
        self.kernels.write_kv(k, v, cache, step.where)
        out = self.kernels.paged_attention(q, cache, step.where, a.attention_scale, layer.window)
        return layer.o.forward(out.flatten(1), step.plan.linear(layer.o.name))

    def _mlp(self, layer: Layer, x: Tensor, plan: StepPlan) -> Tensor:
        gate_up = layer.gate_up.forward(x, plan.linear(layer.gate_up.name))
        gate, up = gate_up.chunk(2, dim=-1)
        return layer.down.forward(self._activation(gate) * up, plan.linear(layer.down.name))

    def _norm(self, name: str, x: Tensor, norms: StepNorms | None) -> Tensor:
        """RMS norm over the last dimension, each row with its variant's weight.

        Gemma multiplies in float32 and rounds then; the others round first.
        """
        if self.architecture.norm_plus_one:
            normed = rms_normalise(x.float(), self.architecture.norm_eps)
            return (normed * self._norm_weight(name, norms)).to(x.dtype)
        return rms_normalise(x, self.architecture.norm_eps) * self._norm_weight(name, norms)

    def _head_norms(self, layer: Layer, qk: Tensor, norms: StepNorms | None) -> Tensor:
        """`_norm` over each head of q and k ([rows, heads + kv_heads, head_dim]), jointly."""
        x = qk.float() if self.architecture.norm_plus_one else qk
        normed = rms_normalise(x, self.architecture.norm_eps)
        q_and_k = normed.tensor_split((self.architecture.num_heads,), 1)
        for part, name in zip(q_and_k, ("q_norm", "k_norm"), strict=True):
            weight = self._norm_weight(f"{layer.prefix}.self_attn.{name}.weight", norms)
            part.mul_(weight if norms is None else weight.unsqueeze(1))
        return normed.to(qk.dtype)

    def _norm_weight(self, name: str, norms: StepNorms | None) -> Tensor:
        """[dim] for all rows, or [rows, dim]."""
        return self._norms.base(name) if norms is None else norms.rows(name)

    def _logits(self, hidden: Tensor, batch: Batch) -> Tensor:
        segments = select_rows(batch.segments, batch.logit_rows.tolist())
        hidden = hidden.index_select(0, batch.logit_rows)
        plan = StepPlan(segments, len(hidden))
        logits = self._linears["lm_head"].forward(hidden, plan.linear("lm_head")).float()
        return finish_logits(logits, hidden, segments, self.architecture.vocab_size)
