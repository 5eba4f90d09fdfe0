"""How a compressed base stores its linears: other tensors than the dense weight they stand for.

Owns: the protocol that checkpoint.py reads such bases by, and which form config.json names. Does
not know: files, what multiplies with a form.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import Tensor

from tsugiki.errors import UnsupportedModel

CONFIG_KEY = "tsugiki"  # of config.json: what this project says of a base
DERIVED_FROM = "derived_from"  # its key for the fingerprint of the base that this one comes from
Read = Callable[[str], Tensor]  # a stored tensor by the suffix of its name


class StoredForm(Protocol):
    """One kind of compressed base; the settings that all its linears share."""

    @property
    def marker(self) -> str:
        """The suffix of the tensor that each of its linears has."""

    @property
    def suffixes(self) -> frozenset[str]:
        """Of everything that a linear may store."""

    @property
    def resident(self) -> tuple[str, ...]:
        """Suffixes of the tensors that are kept in memory as they are."""

    @property
    def dense_dtype(self) -> str:
        """safetensors' word for what `dense` returns."""

    def stored(self) -> dict[str, Any]:
        """As config.json has it."""

    def shape(self, marker_shape: tuple[int, ...], read: Read) -> tuple[int, int]:
        """(out, in) of a linear whose marker has this shape; `read` where that does not tell."""

    def dense(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """The weight [out, in] that stored tensors stand for.

        Raises:
            UnsupportedModel: they do not fit together.
        """

    def backbone(self, name: str, shape: tuple[int, int], read: Read) -> Tensor:
        """What variants of role `parameters` are added to: the weight without its own slot."""


def settings_of(config: Mapping[str, Any], key: str, names: tuple[str, ...]) -> list[int] | None:
    """The integers `names` of config.json's {"tsugiki": {key: {...}}}; None: no such base.

    Raises:
        UnsupportedModel: it says something else.
    """
    ours = config.get(CONFIG_KEY)
    found = ours.get(key) if isinstance(ours, dict) else None
    if found is None:
        return None
    fits = isinstance(found, dict) and set(found) == set(names)
    if not fits or not all(type(value) is int for value in found.values()):
        raise UnsupportedModel(
            f"config.json has {CONFIG_KEY}.{key} {found!r}; expected {', '.join(names)}"
        )
    return [found[name] for name in names]


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a checkpoint whose linears are dense again: where it came from stays."""
    ours = config.get(CONFIG_KEY)
    if not isinstance(ours, dict):
        return dict(config)
    kept = {key: value for key, value in ours.items() if key == DERIVED_FROM}
    return {**config, CONFIG_KEY: kept}
