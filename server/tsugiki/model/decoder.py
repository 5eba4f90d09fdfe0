"""The one decoder: Llama, Mistral, Qwen2, Qwen3 and Gemma 3 differ only in their `Architecture`.

Owns: a base's weights with their workspace, and the way from a batch to its logits: look up or
record the forward pass of the batch's shape, fill its inputs, replay it. Does not know: what a
layer computes (forward_pass.py), files, requests, sampling, codecs; where variants change a linear
is variant_linear.py, where they change the vocabulary embedding.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tsugiki.model.architecture import Architecture
from tsugiki.model.base_form import BaseForm
from tsugiki.model.batch import Batch
from tsugiki.model.embedding import embed, finish_logits
from tsugiki.model.forward_pass import ForwardPass, Layer
from tsugiki.model.kv_cache import KVCache
from tsugiki.model.norms import NormWeights
from tsugiki.model.recorded import LogitsPart, RecordedStep, RecordedSteps
from tsugiki.model.rope import cos_sin
from tsugiki.model.step_plan import StepNorms, StepPlan, select_rows
from tsugiki.model.variant_linear import VariantLinear
from tsugiki.model.workspace import Workspace, take_activations, take_inputs
from tsugiki_kernels.interface import KernelBackend


@dataclass(frozen=True, slots=True)
class Weights:
    """A base on its device: fused linears by fused name, norm weights by canonical name."""

    embedding: Tensor  # [vocab, hidden], activation dtype
    linears: Mapping[str, BaseForm]  # "layers.3.qkv" ... and "lm_head"
    norms: Mapping[str, Tensor]  # as stored, activation dtype


class Decoder:
    """A base's forward pass. Not safe for two threads at once: its steps share one workspace."""

    def __init__(
        self, architecture: Architecture, weights: Weights, kernels: KernelBackend
    ) -> None:
        self.architecture = architecture
        self.weights = weights
        self.kernels = kernels
        self._workspace = Workspace(weights.embedding.device)
        self._linears = {name: VariantLinear(name, form) for name, form in weights.linears.items()}
        self._ropes = sorted(set(architecture.ropes))
        self._layers = [self._layer(i) for i in range(architecture.num_layers)]
        self._norms = NormWeights(weights.norms, architecture.norm_plus_one)
        self._steps = RecordedSteps(self._record, self._workspace)
        device, scale = weights.embedding.device, architecture.embed_scale
        # Gemma rounds the scale to the embedding's dtype before it multiplies
        self._embed_scale = None if scale is None else weights.embedding.new_tensor(scale)
        self._inv_freq = [torch.tensor(rope.inv_freq, device=device) for rope in self._ropes]

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        """Logits of `batch.logit_rows`, and the rows' keys and values written into the cache.

        Returns float32 [logit rows, largest vocabulary of these rows], never rounded to less; a
        row's logits beyond its own vocabulary are -inf. They stand until the next call.
        """
        step = self._steps.get(batch, cache)
        embedding, variants = self.weights.embedding, step.plan.variant_segments
        hidden = embed(batch.token_ids, embedding, variants, self.kernels)
        if self._embed_scale is not None:
            hidden = hidden * self._embed_scale
        step.inputs.fill(hidden, self._rotations(batch.positions), batch.attention)
        step.program.run()
        last = step.last
        vocab = self.architecture.vocab_size
        return finish_logits(last.logits, last.hidden, last.segments, vocab)

    def forget_variants(self) -> None:
        """Drop the recorded steps, which hold their variants in memory."""
        self._steps.clear()
        self._norms.forget()

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

    def _record(self, batch: Batch, cache: KVCache) -> RecordedStep:
        space, dtype = self._workspace, self.weights.embedding.dtype
        rows = len(batch.token_ids)
        plan = StepPlan(batch.segments, rows)
        asked = ForwardPass(
            architecture=self.architecture,
            layers=self._layers,
            lm_head=self._linears["lm_head"],
            plan=plan,
            norms=StepNorms(self._norms, plan, self.weights.embedding.device),
            cache=cache,
            inputs=take_inputs(space, self.architecture, dtype, len(self._ropes), batch.attention),
            acts=take_activations(space, self.architecture, dtype, rows),
            last=self._logits_part(batch),
        )
        program = self.kernels.record(asked.ask)
        return RecordedStep(plan, cache, asked.inputs, asked.last, program)

    def _logits_part(self, batch: Batch) -> LogitsPart:
        space, dtype = self._workspace, self.weights.embedding.dtype
        device = self.weights.embedding.device
        wanted = batch.logit_rows.tolist()
        hidden = (len(wanted), self.architecture.hidden_size)
        every_row = wanted == list(range(len(batch.token_ids)))
        return LogitsPart(
            rows=None if every_row else batch.logit_rows.to(device, copy=True),
            segments=select_rows(batch.segments, wanted),
            hidden=space.take("last hidden", hidden, dtype),
            branch=space.take("last branch", hidden, dtype),
            logits=space.take("logits", (len(wanted), self.architecture.vocab_size), torch.float32),
        )
