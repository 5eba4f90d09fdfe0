"""`tune sketch`: the codebooks of a sketched base, trained (SketchTune, arXiv 2410.06364).

Owns: the student, a transformers model with sketched linears. Does not know: the loop and the file
(compressed.py), command lines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tsugiki.codecs.base import Packed
from tsugiki.codecs.sketch import CODEC, pack
from tsugiki.compress.job import OpenedBase
from tsugiki.compress.progress import Progress
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.errors import ConfigError
from tsugiki.model.sketched import SketchSettings
from tsugiki.tune.compressed import Tuned, TuneJob, TunePlan, replaced_linears, tune
from tsugiki.tune.sketched_linear import SketchedLinear


@dataclass(frozen=True, slots=True)
class SketchTunePlan(TunePlan):
    """What the result depends on."""

    value_bits: int = 8  # of a codebook entry's change in the file


@dataclass(frozen=True, slots=True)
class SketchStudent:
    """A model whose linears are looked up, by weight name."""

    model: Any
    linears: Mapping[str, SketchedLinear]
    value_bits: int

    def group(self, learning_rate: float) -> ParameterGroup:
        """All codebooks."""
        return ParameterGroup(
            {n: line.codebooks for n, line in self.linears.items()}, learning_rate
        )

    def packed(self) -> dict[str, Packed]:
        """What training changed; a linear whose change rounds to nothing is left out."""
        found = {
            n: pack(line.change(), line.index, self.value_bits, n)
            for n, line in self.linears.items()
        }
        return {name: packed for name, packed in found.items() if CODEC.changes(packed)}


def make_student(base: OpenedBase, dtype: torch.dtype, value_bits: int) -> SketchStudent:
    """The base with its sketched linears open to training, everything else frozen.

    Raises:
        ConfigError: the base is not sketched.
    """
    checkpoint, form = base.checkpoint, base.checkpoint.form
    if not isinstance(form, SketchSettings):
        raise ConfigError(
            f"--base {checkpoint.path} is not sketched; run `tsugiki compress-base sketch` first"
        )

    def linear(name: str, bias: torch.Tensor | None) -> SketchedLinear:
        shape, read = checkpoint.matrix_shape(name), checkpoint.reader(name)
        return SketchedLinear(form.weight(name, shape, read), bias)

    model, linears = replaced_linears(checkpoint, dtype, linear)
    return SketchStudent(model, linears, value_bits)


def tune_sketch(job: TuneJob, plan: SketchTunePlan, progress: Progress) -> Tuned:
    """See `tune`.

    Raises:
        InvalidRequest: the data. UnsupportedModel: the base. ConfigError: a base that is not
            sketched, a checkpoint of another run.
    """
    return tune(
        job, plan, CODEC, lambda base: make_student(base, job.dtype, plan.value_bits), progress
    )
