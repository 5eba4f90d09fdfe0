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
from tsugiki.model.recorded import LogitsPart
from tsugiki.model.step_plan import StepNorms, StepPlan
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
    plan: StepPlan
    norms: StepNorms
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
        a, acts, plan = self.architecture, self.acts, self.plan
        layer.qkv.forward(acts.normed, acts.qkv, plan.linear(layer.qkv.name), kernels)
        heads = acts.heads
        if a.qk_norm:
            self._norm_heads(f"{layer.prefix}.self_attn.q_norm.weight", heads.q, kernels)
            self._norm_heads(f"{layer.prefix}.self_attn.k_norm.weight", heads.k, kernels)
        kernels.rotate(heads.rotated, self.inputs.rotations[layer.rope])
        cache, where = self.cache.layers[layer.index], self.inputs.where
        kernels.write_kv(heads.k, heads.v, cache, where)
        scale, window = a.attention_scale, layer.window
        kernels.paged_attention(heads.q, cache, where, scale, window, heads.attended)
        layer.o.forward(acts.attended, acts.branch, plan.linear(layer.o.name), kernels)

    def _mlp(self, layer: Layer, kernels: KernelBackend) -> None:
        acts, plan = self.acts, self.plan
        layer.gate_up.forward(acts.normed, acts.gate_up, plan.linear(layer.gate_up.name), kernels)
        kernels.gate(acts.gate_up, self.architecture.activation, acts.gated)
        layer.down.forward(acts.gated, acts.branch, plan.linear(layer.down.name), kernels)

    def _logits(self, kernels: KernelBackend) -> None:
        last, hidden, branch = self.last, self.inputs.hidden, self.acts.branch
        norms = self.norms
        if last.rows is not None:
            kernels.gather(hidden, last.rows, last.hidden)
            kernels.gather(branch, last.rows, last.branch)
            hidden, branch, norms = last.hidden, last.branch, norms.for_rows(last.rows)
        weight, index = norms.of(FINAL_NORM)
        eps = self.architecture.norm_eps
        kernels.rms_norm(hidden, weight, index, eps, last.hidden, branch)
        plan = StepPlan(last.segments, len(last.hidden)).linear(self.lm_head.name)
        self.lm_head.forward(last.hidden, last.logits, plan, kernels)

    def _norm(self, name: str, kernels: KernelBackend, branch: Tensor | None) -> None:
        """The hidden state, with the branch added, into `acts.normed`."""
        weight, index = self.norms.of(name)
        eps, hidden = self.architecture.norm_eps, self.inputs.hidden
        kernels.rms_norm(hidden, weight, index, eps, self.acts.normed, branch)

    def _norm_branch(self, name: str, kernels: KernelBackend) -> None:
        weight, index = self.norms.of(name)
        branch = self.acts.branch
        kernels.rms_norm(branch, weight, index, self.architecture.norm_eps, branch)

    def _norm_heads(self, name: str, x: Tensor, kernels: KernelBackend) -> None:
        weight, index = self.norms.of(name)
        kernels.rms_norm(x, weight, index, self.architecture.norm_eps, x)
