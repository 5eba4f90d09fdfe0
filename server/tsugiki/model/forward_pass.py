"""The operations of one forward pass, in order, on tensors that stay where they are.

Owns: what a layer computes and how branches meet the hidden state. Nothing is computed here: every
operation is asked of a kernel backend, which may record it. Does not know: when it runs, what the
tensors hold.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tsugiki.model.architecture import Architecture
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.layout import FINAL_NORM
from tsugiki.model.norms import NormWeights
from tsugiki.model.recorded import LogitsPart
from tsugiki.model.step_plan import RebuiltRows
from tsugiki.model.variant_deltas import StepTables
from tsugiki.model.variant_linear import VariantLinear
from tsugiki.model.workspace import Activations, Inputs
from tsugiki_kernels.interface import KernelBackend


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
class ForwardPass:
    """One pass over the rows of a step.

    The hidden state runs behind by one branch: what a block computed is added by the norm that
    comes next, which reads both anyway.
    """

    architecture: Architecture
    layers: Sequence[Layer]
    lm_head: VariantLinear
    rebuilt: RebuiltRows
    tables: StepTables
    norms: NormWeights
    own_norms: bool  # False: every row has the base's
    cache: KVCache
    inputs: Inputs
    acts: Activations
    last: LogitsPart

    def ask(self, kernels: KernelBackend) -> None:
        """All operations, in order."""
        for layer in self.layers:
            self._layer(layer, kernels)
        if len(self.last.logits):
            self._logits(kernels)

    def _layer(self, layer: Layer, kernels: KernelBackend) -> None:
        acts, prefix, sandwich = self.acts, layer.prefix, self.architecture.sandwich_norms
        branch = acts.branch if layer.index else None
        self._norm(f"{prefix}.input_layernorm.weight", kernels, branch)
        self._attention(layer, kernels)
        if sandwich:
            self._norm_branch(f"{prefix}.post_attention_layernorm.weight", kernels)
        before_mlp = "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm"
        self._norm(f"{prefix}.{before_mlp}.weight", kernels, acts.branch)
        self._mlp(layer, kernels)
        if sandwich:
            self._norm_branch(f"{prefix}.post_feedforward_layernorm.weight", kernels)

    def _attention(self, layer: Layer, kernels: KernelBackend) -> None:
        a, acts = self.architecture, self.acts
        layer.qkv.forward(acts.normed, acts.qkv, self.rebuilt, self.tables, kernels)
        heads = acts.heads
        if a.qk_norm:
            self._norm_heads(f"{layer.prefix}.self_attn.q_norm.weight", heads.q, kernels)
            self._norm_heads(f"{layer.prefix}.self_attn.k_norm.weight", heads.k, kernels)
        kernels.rotate(heads.rotated, self.inputs.rotations[layer.rope])
        cache, where = self.cache.layers[layer.index], self.inputs.where
        kernels.write_kv(heads.k, heads.v, cache, where)
        scale, window = a.attention_scale, layer.window
        kernels.paged_attention(heads.q, cache, where, scale, window, heads.attended)
        layer.o.forward(acts.attended, acts.branch, self.rebuilt, self.tables, kernels)

    def _mlp(self, layer: Layer, kernels: KernelBackend) -> None:
        acts, rebuilt, tables = self.acts, self.rebuilt, self.tables
        layer.gate_up.forward(acts.normed, acts.gate_up, rebuilt, tables, kernels)
        kernels.gate(acts.gate_up, self.architecture.activation, acts.gated)
        layer.down.forward(acts.gated, acts.branch, rebuilt, tables, kernels)

    def _logits(self, kernels: KernelBackend) -> None:
        last, inputs, branch = self.last, self.inputs, self.acts.branch
        hidden, places = inputs.hidden, inputs.norms
        if not last.every_row:
            kernels.gather(hidden, inputs.logit_rows, last.hidden)
            kernels.gather(branch, inputs.logit_rows, last.branch)
            hidden, branch, places = last.hidden, last.branch, inputs.logit_norms
        weight, index = self._norm_of(FINAL_NORM, places)
        eps = self.architecture.norm_eps
        kernels.rms_norm(hidden, weight, index, eps, last.hidden, branch)
        self.lm_head.forward(last.hidden, last.logits, last.rebuilt, last.tables, kernels)

    def _norm(self, name: str, kernels: KernelBackend, branch: Tensor | None) -> None:
        """The hidden state, with the branch added, into `acts.normed`."""
        weight, index = self._norm_of(name, self.inputs.norms)
        eps, hidden = self.architecture.norm_eps, self.inputs.hidden
        kernels.rms_norm(hidden, weight, index, eps, self.acts.normed, branch)

    def _norm_branch(self, name: str, kernels: KernelBackend) -> None:
        weight, index = self._norm_of(name, self.inputs.norms)
        branch = self.acts.branch
        kernels.rms_norm(branch, weight, index, self.architecture.norm_eps, branch)

    def _norm_heads(self, name: str, x: Tensor, kernels: KernelBackend) -> None:
        weight, index = self._norm_of(name, self.inputs.norms)
        kernels.rms_norm(x, weight, index, self.architecture.norm_eps, x)

    def _norm_of(self, name: str, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """What `KernelBackend.rms_norm` takes: weight [n, dim] and each row's place in it."""
        weight = self.norms.of(name, base_alone=not self.own_norms)
        return weight, places if self.own_norms else None
