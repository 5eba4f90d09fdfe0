"""A PEFT LoRA adapter as the source of a variant: stored as it is.

Owns: holding its modules against the base. Does not know: how PEFT stores them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tsugiki.codecs.base import Packed
from tsugiki.codecs.peft_adapter import from_peft
from tsugiki.compress.job import OpenedBase
from tsugiki.compress.survey import refuse
from tsugiki.compress.text_side import collect_text_side


@dataclass(frozen=True, slots=True)
class Adapter:
    """The packed modules of an adapter by canonical weight name, and its text side."""

    modules: Mapping[str, Packed]
    text: dict[str, Any] | None


def adapter_modules(base: OpenedBase, directory: Path) -> Adapter:
    """Read an adapter that was trained on this base.

    Raises:
        CompressionRefused: it is more than plain LoRA, or adapts what the base does not have; its
            tokenizer differs from the base's.
    """
    modules = from_peft(directory)
    problems = []
    for name, packed in modules.items():
        place = base.layout.linears.get(name)
        if place is None:
            problems.append(f"{name}: the base has no such linear")
        elif place.shape != tuple(packed.shape):
            found, expected = list(packed.shape), list(place.shape)
            problems.append(f"{name}: the adapter is for {found}, the base has {expected}")
    refuse(problems)
    config = base.checkpoint.config
    text = collect_text_side(base.checkpoint.path, directory, config, config)
    return Adapter(modules, text)
