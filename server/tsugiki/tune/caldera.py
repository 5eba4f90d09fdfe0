"""`tune caldera`: the factors of a CALDERA base, trained on its frozen backbone.

Owns: the student, a transformers model of backbones and factors. Does not know: the loop and the
file (compressed.py), command lines.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki.codecs.base import Packed
from tsugiki.codecs.caldera import CODEC, pack
from tsugiki.codecs.factors import Factors, empty
from tsugiki.codecs.low_rank_fit import regression
from tsugiki.compress.job import OpenedBase
from tsugiki.compress.progress import Progress
from tsugiki.distill.optimizer import ParameterGroup
from tsugiki.errors import ConfigError
from tsugiki.model.caldera import CalderaSettings
from tsugiki.tune.compressed import Tuned, TuneJob, TunePlan, replaced_linears, tune


@dataclass(frozen=True, slots=True)
class CalderaTunePlan(TunePlan):
    """What the result depends on."""

    rank: int = 32
    factor_bits: int = 4


class FactoredLinear(nn.Module):
    """x Q^T + (x R^T) L^T + bias: the factors are trained, in float32."""

    backbone: Tensor
    bias: Tensor | None

    def __init__(self, backbone: Tensor, factors: Factors, bias: Tensor | None) -> None:
        """`backbone` [out, in] in the dtype of the products."""
        super().__init__()
        self.register_buffer("backbone", backbone, persistent=False)
        self.left, self.right = nn.Parameter(factors.left), nn.Parameter(factors.right)
        self.register_buffer("bias", None if bias is None else bias.detach(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        inner = F.linear(x, self.right.to(x.dtype))
        y: Tensor = F.linear(x, self.backbone, self.bias) + F.linear(inner, self.left.to(x.dtype))
        return y

    def factors(self) -> Factors:
        """What they are now."""
        return Factors(self.left.detach(), self.right.detach())


@dataclass(frozen=True, slots=True)
class CalderaStudent:
    """A model of backbones and factors, by weight name."""

    model: Any
    linears: Mapping[str, FactoredLinear]
    factor_bits: int

    def group(self, learning_rate: float) -> ParameterGroup:
        """All factors."""
        sides = {f"{n}/left": line.left for n, line in self.linears.items()}
        sides |= {f"{n}/right": line.right for n, line in self.linears.items()}
        return ParameterGroup(sides, learning_rate)

    def packed(self) -> dict[str, Packed]:
        """All factors, rounded: they replace the base's."""
        return {n: pack(line.factors(), self.factor_bits, n) for n, line in self.linears.items()}


def make_student(base: OpenedBase, dtype: torch.dtype, plan: CalderaTunePlan) -> CalderaStudent:
    """The base with factors of the plan's rank that start out as its own.

    Raises:
        ConfigError: no CALDERA base.
    """
    checkpoint, form = base.checkpoint, base.checkpoint.form
    if not isinstance(form, CalderaSettings):
        raise ConfigError(
            f"--base {checkpoint.path} has no lattice backbone; run `tsugiki compress-base caldera`"
            " first"
        )

    def linear(name: str, bias: Tensor | None) -> FactoredLinear:
        shape, read = checkpoint.matrix_shape(name), checkpoint.reader(name)
        own = form.factors(name, shape, read) or empty(shape)
        start = of_rank(own, min(plan.rank, *shape), plan.seed)
        return FactoredLinear(form.backbone(name, shape, read).to(dtype), start, bias)

    model, linears = replaced_linears(checkpoint, dtype, linear)
    return CalderaStudent(model, linears, plan.factor_bits)


def of_rank(factors: Factors, rank: int, seed: int) -> Factors:
    """Factors of another rank: the best that fewer can do, or more that add nothing yet. Vectors of
    both sides have equal norms, so that one learning rate suits them."""
    if rank < factors.rank:
        factors = regression(factors.product(), torch.eye(factors.right.shape[1]), rank)
    left, right = factors.left, factors.right
    balance = (right.norm(dim=1) / left.norm(dim=0).clamp_min(1e-12)).sqrt().clamp_min(1e-12)
    left, right = left * balance, right / balance[:, None]
    more, width = rank - factors.rank, right.shape[1]
    if more > 0:
        generator = torch.Generator().manual_seed(seed)
        new = torch.randn(more, width, generator=generator) / width**0.5
        left = torch.cat([left, torch.zeros(len(left), more)], dim=1)
        right = torch.cat([right, new])
    return Factors(left.contiguous(), right.contiguous())


def tune_caldera(job: TuneJob, plan: CalderaTunePlan, progress: Progress) -> Tuned:
    """See `tune`.

    Raises:
        InvalidRequest: the data. UnsupportedModel: the base. ConfigError: no CALDERA base, a
            checkpoint of another run.
    """
    return tune(job, plan, CODEC, lambda base: make_student(base, job.dtype, plan), progress)
