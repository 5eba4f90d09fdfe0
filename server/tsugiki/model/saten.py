"""How a Saten base is stored: a packed module of codec saten for a matrix, in place of its weight.

Owns: names and checks of these tensors (docs/format.md, "Saten bases"). Does not know: files, how
they are found (compress_base/). Served dense: at the densities that a whole weight needs, gathering
costs more than the dense product (docs/codecs.md).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tsugiki.codecs.base import Packed
from tsugiki.codecs.saten import CODEC
from tsugiki.errors import InvalidArtifact, UnsupportedModel
from tsugiki.model.stored_form import Read, settings_of

FORM = ".saten"  # after the name of the weight: shape and options, JSON in UTF-8
PARTS = ("cores", "core_steps", "values", "value_steps", "low", "high", "pairs")
KEY = "saten"  # of config.json's "tsugiki" object
NAMES = ("core_bits", "value_bits")


@dataclass(frozen=True, slots=True)
class SatenSettings:
    """What all matrices of a base have in common."""

    core_bits: int
    value_bits: int

    marker: ClassVar[str] = FORM
    suffixes: ClassVar[frozenset[str]] = frozenset({FORM, *(f".{part}" for part in PARTS)})
    resident: ClassVar[tuple[str, ...]] = ()
    dense_dtype: ClassVar[str] = "F32"

    def stored(self) -> dict[str, Any]:
        """See `StoredForm.stored`."""
        return {name: getattr(self, name) for name in NAMES}

    def shape(self, marker_shape: tuple[int, ...], read: Read) -> tuple[int, int]:
        """See `StoredForm.shape`."""
        return _form("a matrix", read(FORM))[0]

    def packed(self, name: str, read: Read) -> Packed:
        """The module that stands for a weight.

        Raises:
            UnsupportedModel: its tensors do not fit together.
        """
        shape, options = _form(name, read(FORM))
        try:
            parts = CODEC.parts(shape, options)
            found = Packed(KEY, shape, options, {part: read(f".{part}") for part in parts}, name)
            CODEC.validate(found)
        except InvalidArtifact as error:
            raise UnsupportedModel(f"{name}: {error}; compress the base again") from error
        return found

    def dense(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """See `StoredForm.dense`: float32."""
        return CODEC.effective(torch.zeros(shape), self.packed(name, read)).weight

    def backbone(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """See `StoredForm.backbone`: variants replace nothing here."""
        return self.dense(name, shape, read)


def stored_tensors(packed: Packed) -> dict[str, Tensor]:
    """What a base stores for a module, by the suffix of the name."""
    text = json.dumps({"options": packed.options, "shape": packed.shape}, sort_keys=True)
    form = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    return {FORM: form, **{f".{part}": tensor for part, tensor in packed.tensors.items()}}


def saten_settings(config: Mapping[str, Any]) -> SatenSettings | None:
    """What config.json says as {"tsugiki": {"saten": {"core_bits", "value_bits"}}}; None: nothing.

    Raises:
        UnsupportedModel: it says something else.
    """
    found = settings_of(config, KEY, NAMES)
    return None if found is None else SatenSettings(*found)


def _form(name: str, stored: Tensor) -> tuple[tuple[int, int], dict[str, Any]]:
    try:
        found = json.loads(bytes(stored.tolist()).decode())
        rows, columns = found["shape"]
        options = dict(found["options"])
    except (ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(f"{name}{FORM} is not the form of a matrix ({error})") from error
    if not all(type(length) is int and length > 0 for length in (rows, columns)):
        raise UnsupportedModel(f"{name}{FORM} has shape {found['shape']!r}; expected two lengths")
    return (rows, columns), options
