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
from tsugiki.model.recorded import LogitsPart, RecordedStep, RecordedSteps, step_shape
from tsugiki.model.rope import cos_sin
from tsugiki.model.step_plan import StepPlan, row_places, select_rows
from tsugiki.model.variant_deltas import StepTables, VariantDeltas
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
        shapes = {name: form.shape for name, form in weights.linears.items()}
        own = {n: form.own for n, form in weights.linears.items() if form.own is not None}
        self._deltas = VariantDeltas(shapes, kernels, own)
        self._linears = {
            name: VariantLinear(name, self._deltas.place(name), form)
            for name, form in weights.linears.items()
        }
        self._ropes = sorted(set(architecture.ropes))
        self._layers = [self._layer(i) for i in range(architecture.num_layers)]
        self._norms = NormWeights(weights.norms, architecture.norm_plus_one, self._workspace)
        self._steps = RecordedSteps(self._workspace)
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
        plan, last = self._plans(batch)
        places = self._norms.places([variant for _, variant in plan.variants])
        shape = step_shape(batch, cache, plan, last), places is None
        step = self._steps.get(
            shape, lambda: self._record(batch, cache, plan, last, own_norms=places is not None)
        )
        step.inputs.fill(
            self._embed(batch, plan), self._rotations(batch.positions), batch.attention
        )
        norms = None if places is None else row_places(plan.variants, places, plan.rows)
        step.inputs.fill_rows(batch.logit_rows, None if norms is None else torch.tensor(norms))
        step.fill_tables(plan, last)
        step.program.run()
        return finish_logits(step.logits, step.hidden, last.segments, self.architecture.vocab_size)

    def forget_variants(self) -> None:
        """Keep no variant alive between steps."""
        self._steps.forget_variants()
        self._norms.forget()
        self._deltas.forget()

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

    def _embed(self, batch: Batch, plan: StepPlan) -> Tensor:
        hidden = embed(batch.token_ids, self.weights.embedding, plan.variants, self.kernels)
        return hidden if self._embed_scale is None else hidden * self._embed_scale

    def _plans(self, batch: Batch) -> tuple[StepPlan, StepPlan]:
        """Of all rows, and of those whose logits are wanted: the same where that is all."""
        rows, wanted = len(batch.token_ids), batch.logit_rows.tolist()
        plan = StepPlan(batch.segments, rows, self._deltas)
        if len(wanted) == rows:
            return plan, plan
        return plan, StepPlan(select_rows(batch.segments, wanted), len(wanted), self._deltas)

    def _record(
        self, batch: Batch, cache: KVCache, plan: StepPlan, last: StepPlan, *, own_norms: bool
    ) -> RecordedStep:
        space, dtype = self._workspace, self.weights.embedding.dtype
        sequences = len(batch.attention.context)
        tables = StepTables(plan.kinds, self._deltas, plan.rows, sequences)
        asked = ForwardPass(
            architecture=self.architecture,
            layers=self._layers,
            lm_head=self._linears["lm_head"],
            rebuilt=plan.rebuilt,
            tables=tables,
            norms=self._norms,
            own_norms=own_norms,
            cache=cache,
            inputs=take_inputs(space, self.architecture, dtype, len(self._ropes), batch),
            acts=take_activations(space, self.architecture, dtype, plan.rows),
            last=self._logits_part(last, tables if last is plan else None, sequences),
        )
        program = self.kernels.record(asked.ask)
        rebuilt = plan.rebuilt.variants + last.rebuilt.variants
        end = asked.last
        return RecordedStep(
            cache, rebuilt, tables, end.tables, asked.inputs, end.hidden, end.logits, program
        )

    def _logits_part(self, plan: StepPlan, tables: StepTables | None, sequences: int) -> LogitsPart:
        """`tables`: those of the step, when the logits of all its rows are wanted."""
        space, dtype = self._workspace, self.weights.embedding.dtype
        hidden = (plan.rows, self.architecture.hidden_size)
        return LogitsPart(
            every_row=tables is not None,
            rebuilt=plan.rebuilt,
            tables=tables or StepTables(plan.kinds, self._deltas, plan.rows, sequences),
            hidden=space.take("last hidden", hidden, dtype),
            branch=space.take("last branch", hidden, dtype),
            logits=space.take("logits", (plan.rows, self.architecture.vocab_size), torch.float32),
        )
