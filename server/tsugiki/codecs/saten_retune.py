"""Training a packed module of saten: its cores and its sparse values; the mask stays.

Source: Saten (arXiv 2505.14871): fine-tuning in the compressed space, gradients masked. Ours: where
values are stored as codes, the product is computed with the rounded ones and gradients pass through
the rounding, so that what was trained is what is stored. Steps stay as they are.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tsugiki.codecs import saten_values
from tsugiki.codecs.base import Packed
from tsugiki.codecs.saten_form import entries_of, sparse_form, train_form, train_of
from tsugiki.codecs.saten_train import TensorTrain
from tsugiki.codecs.trainable import TrainableChange, hold, unit


class Numbers(nn.Module):
    """Stored numbers and what training adds to them, in units of their size."""

    _step: Tensor | None
    _group: Tensor
    _before: Tensor
    _unit: Tensor

    def __init__(self, stored: saten_values.Stored, group: Tensor, bits: int) -> None:
        super().__init__()
        self._stored, self._bits = stored, bits
        before = saten_values.read(stored, group, bits)
        hold(self, _step=stored.step, _group=group, _before=before, _unit=unit(before))
        self.added = nn.Parameter(torch.zeros_like(self._before))

    def forward(self) -> Tensor:
        """float32 [n], as they would be read back."""
        exact = self._before + self._unit * self.added
        if self._step is None:
            return exact
        with torch.no_grad():
            lost = saten_values.rounded(self._like(), exact, self._group, self._bits) - exact
        return exact + lost

    @torch.no_grad()
    def stored(self) -> saten_values.Stored:
        """As stored, with the steps and the gain that they had."""
        now = self._before + self._unit * self.added
        return saten_values.store_like(self._like(), now, self._group, self._bits)

    def _like(self) -> saten_values.Stored:
        return replace(self._stored, step=self._step)


class SatenChange(TrainableChange):
    """x (T' + E')^T - x (T + E)^T."""

    _places: Tensor
    _before: Tensor

    def __init__(self, packed: Packed, dtype: torch.dtype) -> None:
        super().__init__()
        self._packed = packed
        self._train = train_form(packed.shape, packed.options)
        self._sparse = sparse_form(packed.shape, packed.options)
        self._shapes = [core.shape for core in train_of(packed).cores]
        hold(self, _places=entries_of(packed)[0])
        self.cores: Numbers | None = None
        self.values: Numbers | None = None
        if self._train.modes:
            stored = _stored(packed, "core")
            self.cores = Numbers(stored, self._train.group(), self._train.bits)
        if self._sparse.pattern != "none":
            group = self._sparse.group(self._places)
            self.values = Numbers(_stored(packed, "value"), group, self._sparse.bits)
        with torch.no_grad():
            hold(self, _before=self._dense())

    def kinds(self) -> Mapping[str, nn.Parameter]:
        """See `TrainableChange.kinds`."""
        return {name: part.added for name, part in self._parts()}

    def forward(self, x: Tensor) -> Tensor:
        """See `TrainableChange.forward`."""
        return F.linear(x, (self._dense() - self._before).to(x.dtype))

    def pack(self) -> Packed:
        """See `TrainableChange.pack`."""
        changed = {name: part.stored().values for name, part in self._parts()}
        return replace(self._packed, tensors={**self._packed.tensors, **changed})

    def _parts(self) -> list[tuple[str, Numbers]]:
        found = (("cores", self.cores), ("values", self.values))
        return [(name, part) for name, part in found if part is not None]

    def _dense(self) -> Tensor:
        """T + E with the values that are trained, float32 [out, in]."""
        dense = torch.zeros(self._packed.shape, device=self._places.device)
        if self.cores is not None:
            sizes = [shape.numel() for shape in self._shapes]
            flat = torch.split(self.cores(), sizes)
            cores = [c.view(s) for c, s in zip(flat, self._shapes, strict=True)]
            dense = TensorTrain(tuple(cores)).dense()
        if self.values is not None:
            entries = torch.zeros(dense.numel(), device=dense.device).index_put(
                (self._places,), self.values()
            )
            dense = dense + entries.view(dense.shape)
        return dense


def _stored(packed: Packed, kind: str) -> saten_values.Stored:
    gain = float(packed.options[f"{kind}_gain"])
    return saten_values.Stored(
        gain, packed.tensors[f"{kind}s"], packed.tensors.get(f"{kind}_steps")
    )
